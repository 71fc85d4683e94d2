"""The header of a GGUF file, read strictly and without numpy.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little endian).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from exporter.core.contents import foreign_contents
from exporter.core.errors import ModelError
from exporter.core.ggml_types import GGMLType
from exporter.core.near_names import near_files

MAGIC = b"GGUF"
SUFFIX = ".gguf"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32  # bytes, when general.alignment is absent
MAX_STRING = 1 << 30  # bytes; llama.cpp's own limit
MAX_ITEMS = 1 << 30  # array length; llama.cpp's own limit
MAX_DIMS = 4  # GGML_MAX_DIMS in ggml.h
MAX_DEPTH = 4  # arrays of arrays; real files have one level

Value: TypeAlias = "int | float | bool | str | Array"

# number: struct format; bool is 7, string 8, array 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")
COUNTS = ("block_count", "decoder_block_count")
"""Keys of an architecture that count its layers."""
FIXED = 8  # bytes of the magic number and the version
BLOCK = 1 << 20  # bytes per read while texts are skipped


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array; `items` holds only its first values if the rest was skipped."""

    length: int
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in numpy; the file stores the reverse order."""
    type: GGMLType
    offset: int
    """Bytes from the start of its file."""
    path: Path
    """The file that holds it; a model may be split into several."""

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The header of a GGUF: metadata, and where each tensor lies."""

    path: Path
    nbytes: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    shards: tuple[Path, ...] = ()
    """All files of a split model; `path` is the first."""

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if type(value) is int else None

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or "unknown"

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA, which needs its base beside it."""
        return self.text("general.type") == "adapter"

    @property
    def parameters(self) -> int:
        total = 0
        for tensor in self.tensors:
            count = 1
            for n in tensor.shape:
                count *= n
            total += count
        return total


def shard_paths(path: Path, count: int) -> tuple[Path, ...]:
    """File names of a model that is split into `count` files, as llama.cpp names them."""
    if count == 1:
        return (path,)
    stem = path.name.removesuffix(SUFFIX)
    return tuple(
        path.with_name(f"{stem}-{number:05}-of-{count:05}{SUFFIX}")
        for number in range(1, count + 1)
    )


def read_gguf(path: Path, *, keep_items: int = 8) -> GGUFFile:
    """Read a header; of each array only the first `keep_items` items are kept.

    For a split model, `path` is its first file. Raises ModelError, with the fault, for anything but
    a whole GGUF.
    """
    found = read_files(path, keep_items)
    refuse_wrong_counts(found)
    return found


def refuse_wrong_counts(model: GGUFFile) -> None:
    """Raise ModelError for more layers than tensors: a loop over such a count would not end."""
    for name in COUNTS:
        key = f"{model.architecture}.{name}"
        count = model.number(key) or 0
        if model.tensors and not model.is_adapter and not 0 <= count <= len(model.tensors):
            raise ModelError(
                f"`{model.path}` is not a whole GGUF: `{key}` is {count}, and there are"
                f" {len(model.tensors)} tensors",
                hint="export or download it again",
            )


def read_files(path: Path, keep_items: int) -> GGUFFile:
    """The header of a single file, or of all files of a split model. Raises ModelError."""
    first = read_file(path, keep_items)
    count = first.number("split.count") or 1
    if count <= 1:
        return first
    named = SHARD.fullmatch(path.name)
    number = (first.number("split.no") or 0) + 1
    if not named or int(named["count"]) != count or int(named["number"]) != number:
        raise ModelError(
            f"`{path}` is part {number} of {count} of a split model, but its name does not say so",
            hint=f"name it …-{number:05}-of-{count:05}{SUFFIX}, as llama.cpp does",
        )
    whole = path.with_name(named["stem"] + SUFFIX)
    paths = shard_paths(whole, count)
    if number != 1:
        raise ModelError(
            f"`{path}` is part {number} of a split model", hint=f"name its first: {paths[0]}"
        )
    if missing := [shard for shard in paths if not shard.exists()]:
        raise ModelError(
            f"`{missing[0]}` is missing: {len(missing)} of the {count} files of a split model are",
            hint="export or download it again",
        )
    shards = [first, *(read_file(shard, keep_items) for shard in paths[1:])]
    tensors = tuple(tensor for shard in shards for tensor in shard.tensors)
    if len(tensors) != first.number("split.tensors.count"):
        raise ModelError(
            f"the {count} files of `{whole.name}` have {len(tensors)} tensors, but should have"
            f" {first.number('split.tensors.count')}",
            hint="they belong to different models: export or download it again",
        )
    return GGUFFile(path, sum(shard.nbytes for shard in shards), first.metadata, tensors, paths)


def read_file(path: Path, keep_items: int) -> GGUFFile:
    """The header of one file. Raises ModelError when it is damaged or not readable."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return parse(Cursor(file, size, path, keep_items))
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no file `{path}`",
            hint=near_files(path, "`decant list` shows the models", (SUFFIX,)),
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read `{path}`: {error.strerror}", hint="is it a file?") from error


def read_texts(path: Path, key: str, places: Iterable[int]) -> dict[int, str]:
    """Texts at the given places of a text array; skipping the others is much faster.

    Empty where there is no such array. Raises ModelError for a damaged header.
    """
    with path.open("rb") as file:
        cursor = Cursor(file, path.stat().st_size, path, 0)
        cursor.take(FIXED)
        cursor.number("<Q")
        for _ in range(cursor.number("<Q")):
            name, kind = cursor.string(), cursor.number("<I")
            if (name, kind) != (key, ARRAY):
                cursor.value(kind)
                continue
            if cursor.number("<I") != STRING:
                return {}
            length, done, found = cursor.number("<Q"), 0, {}
            for place in sorted({place for place in places if 0 <= place < length}):
                cursor.skip_strings(place - done)
                found[place], done = cursor.string(), place + 1
            return found
    return {}


class Cursor:
    """Reads forward through the file, never past its end; a damaged header raises ModelError."""

    def __init__(self, file: BinaryIO, size: int, path: Path, keep_items: int) -> None:
        self.file, self.size, self.path, self.keep_items = file, size, path, keep_items

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            f"`{self.path}` is not a whole GGUF: {what}", hint="export or download it again"
        )

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise self.damaged(f"it ends after {self.size} bytes, in its header")
        return self.file.read(count)

    def number(self, code: str) -> int:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code)))
        assert isinstance(value, int)
        return value

    def string(self) -> str:
        length = self.number("<Q")
        if length > MAX_STRING:
            raise self.damaged(f"a text of {length} bytes")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(depth)
        if kind not in SCALARS:
            raise self.damaged(f"a value of unknown type {kind}")
        code = SCALARS[kind]
        (value,) = struct.unpack(code, self.take(struct.calcsize(code)))
        assert isinstance(value, (int, float, bool))
        return value

    def array(self, depth: int) -> Array:
        kind, length = self.number("<I"), self.number("<Q")
        if length > MAX_ITEMS or depth >= MAX_DEPTH:
            raise self.damaged(f"an array of {length} items, {depth} deep")
        kept = min(length, self.keep_items)
        items = self.items(kind, kept, depth)
        if kind in SCALARS:
            width = struct.calcsize(SCALARS[kind]) * (length - kept)
            if width > self.size - self.file.tell():
                raise self.damaged(f"an array of {length} items runs past its end")
            self.file.seek(width, 1)
        elif kind == STRING:
            self.skip_strings(length - kept)
        else:
            for _ in range(length - kept):
                self.value(kind, depth + 1)
        return Array(length, items)

    def items(self, kind: int, count: int, depth: int) -> tuple[Value, ...]:
        """The first items of an array; numbers are unpacked all at once."""
        if kind in SCALARS:
            code = f"<{count}{SCALARS[kind][1]}"
            return struct.unpack(code, self.take(struct.calcsize(code)))
        if kind == STRING:
            return tuple(self.strings(count))
        return tuple(self.value(kind, depth + 1) for _ in range(count))

    def strings(self, count: int) -> list[str]:
        """The next texts, read block by block; a vocabulary has hundreds of thousands."""
        start = self.file.tell()
        block, at, length, unpack, found = b"", 0, 0, LENGTH.unpack_from, list[bytes]()
        for _ in range(count):
            end = at + LENGTH.size
            if end <= len(block):
                (length,) = unpack(block, at)
            if end > len(block) or end + length > len(block):
                start, block, length = self.refilled(start + at)
                at, end = 0, LENGTH.size
            at = end + length
            found.append(block[end:at])
        self.file.seek(start + at)
        return [text.decode("utf-8", errors="replace") for text in found]

    def refilled(self, start: int) -> tuple[int, bytes, int]:
        """A block that begins with the text at `start`, and the text's length.

        Returns `start`, too.
        """
        self.file.seek(start)
        block = self.file.read(BLOCK)
        if len(block) < LENGTH.size:
            raise self.damaged(f"it ends after {self.size} bytes, in its header")
        (length,) = LENGTH.unpack_from(block)
        if length > MAX_STRING:
            raise self.damaged(f"a text of {length} bytes")
        if LENGTH.size + length > len(block):
            block += self.file.read(LENGTH.size + length - len(block))
        if LENGTH.size + length > len(block):
            raise self.damaged(f"it ends after {self.size} bytes, in its header")
        return start, block, length

    def skip_strings(self, count: int) -> None:
        """Skip the next texts, block by block; a vocabulary has hundreds of thousands."""
        block, at, start = b"", 0, self.file.tell()
        for _ in range(count):
            if at + 8 > len(block):
                start += at
                self.file.seek(start)
                block, at = self.file.read(BLOCK), 0
                if len(block) < 8:  # noqa: PLR2004 - bytes of a text's length
                    raise self.damaged(f"it ends after {self.size} bytes, in its header")
            (length,) = LENGTH.unpack_from(block, at)
            if length > MAX_STRING:
                raise self.damaged(f"a text of {length} bytes")
            at += 8 + length
            if at > len(block):
                start, block, at = start + at, b"", 0
        start += at
        if start > self.size:
            raise self.damaged(f"it ends after {self.size} bytes, in its header")
        self.file.seek(start)


def parse(cursor: Cursor) -> GGUFFile:
    """Parse the header of one file. Raises ModelError for a damaged one."""
    if cursor.size < 24 or cursor.take(4) != MAGIC:  # noqa: PLR2004 - the fixed part of a header
        if found := foreign_contents(cursor.path):
            what = f"`{cursor.path}` is not a whole GGUF: it {found.what}"
            raise ModelError(what, hint=found.hint)
        raise cursor.damaged("it does not begin with GGUF and a header")
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise cursor.damaged(f"version {version} is not known")
    n_tensors, n_keys = cursor.number("<Q"), cursor.number("<Q")
    if max(n_tensors, n_keys) > cursor.size:
        raise cursor.damaged(f"{n_tensors} tensors and {n_keys} keys in {cursor.size} bytes")
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("<I"))
    infos = [parse_tensor(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise cursor.damaged(f"an alignment of {alignment}")
    start = cursor.file.tell()
    start += -start % alignment
    tensors = tuple(
        TensorInfo(info.name, info.shape, info.type, start + info.offset, info.path)
        for info in infos
    )
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > cursor.size:
            end = tensor.offset + tensor.nbytes
            raise cursor.damaged(f"tensor `{tensor.name}` ends at byte {end} of {cursor.size}")
    return GGUFFile(cursor.path, cursor.size, metadata, tensors)


def parse_tensor(cursor: Cursor) -> TensorInfo:
    name, n_dims = cursor.string(), cursor.number("<I")
    if n_dims > MAX_DIMS:
        raise cursor.damaged(f"tensor `{name}` has {n_dims} dimensions")
    shape = tuple(reversed([cursor.number("<Q") for _ in range(n_dims)]))
    number, offset = cursor.number("<I"), cursor.number("<Q")
    try:
        kind = GGMLType.by_number(number)
    except KeyError as error:
        raise cursor.damaged(f"tensor `{name}` has the unknown type {number}") from error
    if shape and shape[-1] % kind.block:
        raise cursor.damaged(
            f"tensor `{name}`: rows of {shape[-1]} values in blocks of {kind.block}"
        )
    return TensorInfo(name, shape, kind, offset, cursor.path)
