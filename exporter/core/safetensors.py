"""The header of a safetensors file, read strictly, without loading any tensor.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from exporter.core.contents import foreign_contents
from exporter.core.errors import InputError

LENGTH_NBYTES = 8  # of the header's length, before the JSON
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's entry in a header."""

    name: str
    dtype: str
    """As safetensors spells it: BF16, F32 …"""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Bytes from the start of the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path, *, error: type[InputError]) -> dict[str, StoredTensor]:
    """The tensors of one file by name, in name order. Raises `error` for every fault."""
    hint = "download or copy the file again"
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(LENGTH_NBYTES), "little")
            start = LENGTH_NBYTES + length
            if start > size or size < LENGTH_NBYTES or length > MAX_HEADER:
                if found := foreign_contents(path):
                    raise error(f"`{path}` {found.what}", hint=found.hint)
                raise error(
                    f"`{path}` is cut short: its header needs {start} bytes, the file has {size}",
                    hint=hint,
                )
            raw = file.read(length)
    except OSError as failed:
        raise error(f"cannot read `{path}`: {failed.strerror}", hint=hint) from failed
    try:
        entries = json.loads(raw, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as broken:
        if found := foreign_contents(path):
            raise error(f"`{path}` {found.what}", hint=found.hint) from broken
        raise error(f"the header of `{path}` is damaged: {broken}", hint=hint) from broken
    if not isinstance(entries, dict):
        raise error(f"the header of `{path}` is not an object", hint=hint)
    entries.pop("__metadata__", None)
    tensors = []
    for name, entry in entries.items():
        try:
            tensors.append(parse_entry(name, entry, path, start=start, data=size - start))
        except (ValueError, TypeError, KeyError) as broken:
            raise error(f"tensor `{name}` in `{path}` is damaged: {broken}", hint=hint) from broken
    refuse_overlap(tensors, path, error=error, hint=hint)
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.name)}


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key `{twice}` is there twice")
    return entries


def parse_entry(name: str, entry: object, path: Path, *, start: int, data: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise TypeError("its entry is not an object")
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"unknown type {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("its shape or offsets are not whole numbers")
    tensor = StoredTensor(name, dtype, tuple(shape), path, start + begin)
    if end - begin != tensor.nbytes:
        raise ValueError(
            f"{end - begin} bytes for {dtype} {list(shape)}, which needs {tensor.nbytes}"
        )
    if end > data:
        raise ValueError(f"it ends at byte {end} of {data}: the file is cut short")
    return tensor


def refuse_overlap(
    tensors: list[StoredTensor], path: Path, *, error: type[InputError], hint: str
) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.nbytes and tensor.offset < end:
            raise error(f"`{before}` and `{tensor.name}` overlap in `{path}`", hint=hint)
        end, before = max(end, tensor.offset + tensor.nbytes), tensor.name
