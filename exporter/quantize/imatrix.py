"""Importance matrices: how much each input of a tensor matters, measured by llama-imatrix."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from exporter.core.atomic_file import sha256_file
from exporter.core.errors import InputError, ModelError, UnsupportedError
from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import MAGIC, Array, GGUFFile, TensorInfo, read_gguf
from exporter.core.near_names import near_files

if TYPE_CHECKING:
    import numpy as np

    from exporter.convert.gguf_layout import Slot

SUMS, COUNTS = ".in_sum2", ".counts"
KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
MAX_NAME = 1 << 10  # bytes of a tensor's name in a .dat
MAX_TEXT = 127  # bytes of a text that llama-quantize writes into a key
NAMED = 3  # tensors named in an error

# llama-quant.cpp, tensor_requires_imatrix: NEEDY types need a matrix, except in these tensors
TABLES = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
NEEDY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
# ggml_quantize_requires_imatrix: without a matrix ggml aborts, whatever the tensor
UNABLE = ("IQ1_S", "IQ2_XXS", "IQ2_XS")
HINT = "--imatrix FILE names one, --calibrate TEXT.txt makes one"


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The vectors of one file, as llama-quantize uses them."""

    path: Path
    sha256: str
    datasets: tuple[str, ...]
    """The texts on which it was measured."""
    chunks: int
    entries: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)
    """Tensor name -> (experts * inputs,) in float32, expert by expert."""


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a GGUF imatrix, or the older .dat of llama-imatrix.

    Raises ModelError, with the fault, for anything else.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
            file.seek(0)
            read = read_new if is_gguf else read_old
            datasets, chunks, entries = read(path, file)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no importance matrix `{path}`", hint=near_files(path, HINT)
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read `{path}`: {error.strerror}", hint="is it a file?") from error
    check_finite(path, entries)
    return ImportanceMatrix(path, sha256_file(path), datasets, chunks, entries)


Contents = tuple[tuple[str, ...], int, dict[str, "np.ndarray[Any, Any]"]]


def read_new(path: Path, file: BinaryIO) -> Contents:
    """Read a GGUF: sums of squares and their counts, which llama-quantize divides."""
    header = read_gguf(path)
    if any(key not in header.metadata for key in KEYS):
        raise damaged(path, "it is a GGUF without the keys of one: a model?")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS))
    entries = {}
    for name in names:
        counts = tensors.get(name + COUNTS)
        if counts is None:
            raise damaged(path, f"it has no counts for `{name}`")
        entries[name] = mean(
            path, name, values_of(path, file, tensors[name + SUMS]), values_of(path, file, counts)
        )
    if not entries:
        raise damaged(path, "it has no entries")
    return datasets_of(header), header.number(KEYS[1]) or 0, entries


def mean(
    path: Path, name: str, sums: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Each expert's sums (experts * inputs,) divided by its count (experts,).

    An expert that no token reached gets ones. Raises ModelError for sizes that do not fit.
    """
    import numpy as np

    if not counts.size or sums.size % counts.size:
        raise damaged(path, f"`{name}` has {sums.size} values and {counts.size} counts")
    rounded = np.rint(counts).reshape(-1, 1)
    rows = sums.reshape(counts.size, -1)
    result = np.ones_like(rows)
    np.divide(rows, rounded, out=result, where=rounded > 0)
    return result.reshape(-1)


def values_of(path: Path, file: BinaryIO, tensor: TensorInfo) -> np.ndarray[Any, Any]:
    """The values (n,) of a float32 tensor in the file. Raises ModelError for another type."""
    import numpy as np

    if tensor.type.name != "F32":
        raise damaged(path, f"`{tensor.name}` is {tensor.type.name}, not F32")
    file.seek(tensor.offset)
    return np.frombuffer(file.read(tensor.nbytes), dtype="<f4")


def datasets_of(header: GGUFFile) -> tuple[str, ...]:
    listed = header.metadata[KEYS[0]]
    return tuple(map(str, listed.items)) if isinstance(listed, Array) else ()


def read_old(path: Path, file: BinaryIO) -> Contents:
    """Read a .dat: a count, then each tensor's name, calls and values; perhaps chunks and text."""
    import numpy as np

    def number() -> int:
        (value,) = struct.unpack("<i", take(4))
        assert isinstance(value, int)
        return value

    def take(nbytes: int) -> bytes:
        content = file.read(nbytes) if 0 <= nbytes <= size else b""
        if len(content) != nbytes:
            raise damaged(path, "it is neither a GGUF nor a whole .dat")
        return content

    size = path.stat().st_size
    entries = {}
    for _ in range(number()):
        length = number()
        name = take(length if length <= MAX_NAME else -1).decode("utf-8", errors="replace")
        calls, count = number(), number()
        sums = np.frombuffer(take(4 * count), dtype="<f4")
        entries[name] = sums / np.float32(calls) if calls > 0 else sums
    if not entries:
        raise damaged(path, "it is neither a GGUF nor a .dat with entries")
    if file.tell() == size:
        return (), 0, entries
    chunks, length = number(), number()
    text = take(length).decode("utf-8", errors="replace").rstrip("\0")
    return ((text,) if text else ()), chunks, entries


def check_finite(path: Path, entries: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise ModelError for values (n,) that are not finite."""
    import numpy as np

    bad = [name for name, values in entries.items() if not np.isfinite(values).all()]
    if bad:
        raise damaged(path, f"{listed(bad)} hold values that are not finite")


def damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        f"`{path}` is not an importance matrix: {what}", hint="make it again with llama-imatrix"
    )


def check_fit(matrix: ImportanceMatrix, slots: Iterable[Slot]) -> None:
    """Raise InputError, with names and sizes, if `matrix` was measured on another model."""
    shapes = {slot.name: slot.shape for slot in slots}
    strange = [name for name in matrix.entries if name not in shapes]
    if strange:
        raise InputError(
            f"`{matrix.path}` was measured on another model: {len(strange)} of its"
            f" {len(matrix.entries)} entries name no tensor of this one: {listed(strange)}",
            hint="use one that was made for this base",
        )
    wrong = [
        f"`{name}` with {values.size} values instead of {inputs(shapes[name])}"
        for name, values in matrix.entries.items()
        if values.size != inputs(shapes[name]) and name not in TABLES
    ]
    if wrong:
        more = f" (and {len(wrong) - NAMED} more)" if len(wrong) > NAMED else ""
        raise InputError(
            f"`{matrix.path}` was measured on another model: it has"
            f" {', '.join(wrong[:NAMED])}{more}",
            hint="use one that was made for this base",
        )


def inputs(shape: tuple[int, ...]) -> int:
    """The number of values in a tensor's entry: its inputs, for every expert."""
    return shape[-1] * (shape[0] if len(shape) > 2 else 1)  # noqa: PLR2004 - (expert, out, in)


def listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:NAMED]) + more


def check_covered(
    types: Mapping[str, GGMLType],
    slots: Iterable[Slot],
    quant: str,
    matrix: ImportanceMatrix | None,
) -> None:
    """Raise UnsupportedError if a tensor cannot have its type without an importance matrix."""
    shapes = {slot.name: slot.shape for slot in slots}
    has = {
        name: values.size == inputs(shapes[name])
        for name, values in (matrix.entries.items() if matrix else ())
    }
    bare = [name for name, kind in types.items() if needs(name, kind, quant) and not has.get(name)]
    if not bare:
        return
    if matrix is None:
        raise UnsupportedError(
            f"{quant} needs an importance matrix for this model: without one"
            f" {types[bare[0]].name} destroys {listed(bare)}",
            hint=HINT,
        )
    raise UnsupportedError(
        f"`{matrix.path}` has no values for {listed(bare)}, which cannot become"
        f" {types[bare[0]].name} without",
        hint="measure it on more text, or choose another -q, or type with --tensor-type",
    )


def needs(name: str, kind: GGMLType, quant: str) -> bool:
    if kind.name in UNABLE:
        return True
    needy = kind.name in NEEDY or (kind.name == "Q2_K" and quant == "Q2_K_S")
    return needy and name not in TABLES


@dataclass(frozen=True, slots=True)
class Importance:
    """Importance matrix of one tensor."""

    vectors: np.ndarray[Any, Any]
    """(experts, inputs) in float32."""
    rows_each: int
    """Rows of one expert, which share a vector."""


def importance(matrix: ImportanceMatrix | None, slots: Iterable[Slot]) -> dict[str, Importance]:
    """The importance of each tensor that `matrix` covers."""
    import numpy as np

    found = {}
    for slot in slots:
        values = matrix.entries.get(slot.name) if matrix else None
        if values is not None and values.size == inputs(slot.shape):
            vectors = np.ascontiguousarray(values, np.float32).reshape(-1, slot.shape[-1])
            rows = slot.shape[-2] if len(slot.shape) > 1 else 1
            found[slot.name] = Importance(vectors, rows)
    return found


def keys(matrix: ImportanceMatrix) -> dict[str, str | int]:
    """The keys that llama-quantize writes about a matrix, with file names instead of paths."""
    metadata: dict[str, str | int] = {"quantize.imatrix.file": cut(matrix.path.name)}
    if matrix.datasets:
        name = matrix.datasets[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
        metadata["quantize.imatrix.dataset"] = cut(name)
    metadata["quantize.imatrix.entries_count"] = len(matrix.entries)
    if matrix.chunks > 0:
        metadata["quantize.imatrix.chunks_count"] = matrix.chunks
    return metadata | {"decant.imatrix.sha256": matrix.sha256}


def cut(text: str) -> str:
    return text.encode()[:MAX_TEXT].decode(errors="ignore")
