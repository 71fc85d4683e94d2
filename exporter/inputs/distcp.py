"""Checkpoints of torch.distributed (FSDP): `.metadata` and shards that end in .distcp.

`.metadata` is a pickle, and torch's reader runs any code that it names. This reader makes only the
record types that torch writes into it; the shards hold tensors as torch.save writes them and are
read with weights_only. So no code in such a folder runs.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.atomic_file import is_there
from exporter.core.errors import InputError, ToolchainError, UnsupportedError
from exporter.inputs.lazy_tensor import Tensor, dtype_name, nbytes_of, torch_dtype

if TYPE_CHECKING:
    import torch

METADATA, SHARDS = ".metadata", "*.distcp"
RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}  # fmt: skip
"""Names that `.metadata` may contain, besides torch's dtypes."""
NOT_THE_MODELS = ("optim", "optimizer", "optimizers", "optimizer_states", "scheduler", "dataloader")
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
DAMAGE = (
    pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError,
    ValueError, RuntimeError, AssertionError, OverflowError,
)  # fmt: skip
AGAIN = "copy the whole checkpoint again, with the files of all processes"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a tensor, and the bytes of a shard that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Sharded:
    """A tensor in pieces, assembled when it is read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    error: type[InputError]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """Read the whole tensor, of shape `shape`. Raises `error` if a shard holds something
        else.
        """
        import torch

        whole = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        for chunk in self.chunks:
            with chunk.path.open("rb") as file:
                file.seek(chunk.start)
                raw = io.BytesIO(file.read(chunk.nbytes))
            try:
                part = torch.load(raw, map_location="cpu", weights_only=True)
                assert isinstance(part, torch.Tensor)
                assert tuple(part.shape) == chunk.sizes
                assert part.dtype == whole.dtype
            except DAMAGE as broken:
                raise self.error(
                    f"`{chunk.path}` holds no {list(chunk.sizes)} of `{self.name}`", hint=AGAIN
                ) from broken
            spans = zip(chunk.offsets, chunk.sizes, strict=True)
            whole[tuple(slice(first, first + size) for first, size in spans)] = part
        return whole


class Records(pickle.Unpickler):
    """Unpickles torch's records; any other class raises UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in RECORDS.get(module, ()):
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype | torch.layout):
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def is_distcp(folder: Path) -> bool:
    return is_there(folder / METADATA) and any(folder.glob(SHARDS))


def read_distcp(folder: Path, *, error: type[InputError]) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint by name, unread; optimizer states are left out.

    Each has its full shape, (rows, columns) for a matrix. Raises `error` for every fault,
    UnsupportedError for compressed shards, ToolchainError without torch.
    """
    try:
        import torch.distributed.checkpoint.metadata  # noqa: F401 - whether it is there
    except ImportError as missing:
        raise ToolchainError(
            f"reading `{folder}` needs torch, which this installation lacks",
            hint="pip install 'decant-llm[export]'",
        ) from missing
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = Records(file).load()
        entries = dict(metadata.state_dict_metadata)
        names = dict(metadata.planner_data or {})
        places = {(at.fqn, tuple(at.offset or ())): at for at in metadata.storage_data}
        tensors: dict[str, Tensor] = {
            name: sharded(key, name, entries[key], metadata.storage_data, places, folder, error)
            for key, name in wanted(entries, names)
        }
    except OSError as failed:
        raise error(f"cannot read `{folder}`: {failed.strerror}", hint=AGAIN) from failed
    except DAMAGE as broken:
        raise error(
            f"`{folder / METADATA}` is refused: it is damaged, or a pickle of more than torch's"
            f" records, which could run code ({broken})",
            hint=AGAIN,
        ) from broken
    if not tensors:
        raise error(f"`{folder}` holds no tensor of a model", hint=AGAIN)
    return tensors


def wanted(entries: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The key of each model tensor, and its name without wrappers."""
    for key, entry in entries.items():
        path = names.get(key) or (key,)
        if not hasattr(entry, "chunks") or any(part in NOT_THE_MODELS for part in path[:-1]):
            continue
        name = str(path[-1])
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        yield key, name


def sharded(
    key: str,
    name: str,
    entry: Any,
    storage: Mapping[Any, Any],
    places: Mapping[Any, Any],
    folder: Path,
    error: type[InputError],
) -> Sharded:
    """One tensor with all its pieces.

    Raises `error` for a missing shard, UnsupportedError for compressed ones, ValueError for pieces
    that do not fit.
    """
    shape, dtype = tuple(map(int, entry.size)), dtype_name(entry.properties.dtype)
    if dtype is None:
        raise ValueError(f"`{name}` is of the type {entry.properties.dtype}")
    chunks = []
    for piece in entry.chunks:
        offsets, sizes = tuple(map(int, piece.offsets)), tuple(map(int, piece.sizes))
        where = storage[places[key, offsets]]
        if getattr(where, "transform_descriptors", None):
            raise UnsupportedError(
                f"the shards of `{folder}` are stored with {where.transform_descriptors}",
                hint="load and save it with torch.distributed.checkpoint, without a transform",
            )
        path = folder / where.relative_path
        if Path(where.relative_path).name != where.relative_path or not path.is_file():
            raise error(f"`{path}` is missing, which holds a part of `{name}`", hint=AGAIN)
        chunks.append(Chunk(offsets, sizes, path, int(where.offset), int(where.length)))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"the pieces of `{name}` do not make {list(shape)}")
    return Sharded(name, dtype, shape, tuple(chunks), error)
