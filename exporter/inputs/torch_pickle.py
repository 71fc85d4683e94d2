"""Weights in PyTorch's pickle format; only tensors are loaded, no code runs.

Files of `torch.save` since 2020 are zip archives whose records are raw values, so that a tensor is
located without reading it. Older files are one stream, which is read whole.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter.core.contents import foreign_contents
from exporter.core.errors import InputError, ToolchainError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import Tensor, dtype_name, nbytes_of

if TYPE_CHECKING:
    import torch

LOCAL_HEADER = 30  # bytes, then the record's name and extra field; APPNOTE.TXT 4.3.7
# exceptions of torch.load for bytes that are no checkpoint
DAMAGE = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    OverflowError, AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor that is only available by loading its whole file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    error: type[InputError]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        import torch

        found = whole_file(self.path, self.error)[self.name]
        return found.detach().clone(memory_format=torch.contiguous_format)


def read_pickled(path: Path, *, error: type[InputError]) -> dict[str, Tensor]:
    """The tensors of one file by name and shape (rows, columns), in the file's order.

    Raises `error` for every fault, ToolchainError without torch. Nothing in the file is executed: a
    pickle that asks for more than tensors is refused.
    """
    if found := foreign_contents(path):
        raise error(f"`{path}` {found.what}", hint=found.hint)
    try:
        is_zip = zipfile.is_zipfile(path)
        records = record_places(path) if is_zip else {}
    except (OSError, *DAMAGE) as broken:
        raise error(f"`{path}` is damaged: {first_line(broken)}", hint=AGAIN) from broken
    entries = load(path, "meta", error=error) if is_zip else whole_file(path, error)
    tensors: dict[str, Tensor] = {}
    for name, value in entries.items():
        dtype, shape = dtype_name(value.dtype), tuple(value.shape)
        if dtype is None:
            raise error(
                f"`{name}` in `{path}` has the type {value.dtype}, which has no use here",
                hint="save the model again as safetensors",
            )
        offset = place(value, records)
        tensors[name] = (
            PickledTensor(name, dtype, shape, path, error)
            if offset is None
            else StoredTensor(name, dtype, shape, path, offset)
        )
    return tensors


AGAIN = "download or copy the file again"


def load(path: Path, device: str, *, error: type[InputError]) -> dict[str, torch.Tensor]:
    """Load the file's tensors, of any shapes (…); on "meta" without values, else mapped if
    possible.

    Raises `error` for every fault, ToolchainError without torch.
    """
    try:
        import torch
    except ImportError as missing:
        raise ToolchainError(
            f"reading `{path}` needs torch, which this installation lacks",
            hint="pip install 'decant-llm[export]'",
        ) from missing
    mapped = device != "meta" and zipfile.is_zipfile(path)
    try:
        entries = torch.load(path, map_location=device, weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as refused:
        raise error(
            f"`{path}` is refused: it is damaged, or a pickle of more than tensors,"
            f" which could run code ({reason(refused)})",
            hint="use a release in safetensors, or save the weights alone as that",
        ) from refused
    except OSError as failed:
        raise error(f"cannot read `{path}`: {failed.strerror or failed}", hint=AGAIN) from failed
    except DAMAGE as broken:
        raise error(f"`{path}` is damaged: {first_line(broken)}", hint=AGAIN) from broken
    strangers = (
        [key for key, value in entries.items() if not is_plain(key, value)]
        if isinstance(entries, dict)
        else [type(entries).__name__]
    )
    if strangers:
        raise error(
            f"`{path}` holds {str(strangers[0])!r}, which is not a named tensor",
            hint="a model's weights are a flat table of names and tensors",
        )
    return dict(entries)


def whole_file(path: Path, error: type[InputError]) -> dict[str, torch.Tensor]:
    """All tensors of a file, of any shapes (…), loaded whole. Raises `error` for every fault."""
    try:
        state = path.stat()
    except OSError as failed:
        raise error(f"cannot read `{path}`: {failed.strerror}", hint=AGAIN) from failed
    try:
        return last_loaded(path, (state.st_size, state.st_mtime_ns))
    except InputError as failed:
        raise error(failed.message, hint=failed.hint) from failed


@lru_cache(maxsize=1)
def last_loaded(path: Path, state: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Cache of the last file loaded whole, shapes (…): its tensors are read one after the other."""
    del state  # part of the key: a changed file is loaded again
    return load(path, "cpu", error=InputError)


def is_plain(key: object, value: object) -> bool:
    import torch

    return (
        isinstance(key, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
    )


def place(tensor: torch.Tensor, records: dict[int, int]) -> int | None:
    """The offset of a tensor's values (…) in the file; None unless they are contiguous there.

    Its storage must be a record in the archive's directory.
    """
    offset: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if (
        offset is None
        or not tensor.is_contiguous()
        or tensor.is_conj()
        or tensor.is_neg()
        or offset not in records
    ):
        return None
    begin = int(tensor.storage_offset()) * tensor.element_size()
    fits = begin + tensor.numel() * tensor.element_size() <= records[offset]
    return offset + begin if fits else None


def record_places(path: Path) -> dict[int, int]:
    """Offset -> size in bytes of all uncompressed records."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        return {
            data_start(file, info): info.file_size
            for info in archive.infolist()
            if info.compress_type == zipfile.ZIP_STORED
        }


def data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + LOCAL_HEADER + sum(lengths)


def reason(refused: Exception) -> str:
    """The line of torch's long message that names the class in the pickle."""
    lines = [line.strip() for line in str(refused).splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    line = (telling or lines or ["no reason given"])[0]
    return line.partition("WeightsUnpickler error: ")[2] or line


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
