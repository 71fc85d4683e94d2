"""A model laid out as GGUF by names, shapes and settings; its values are read later."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.lazy_graph import Node
from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import DEFAULT_ALIGNMENT

if TYPE_CHECKING:
    from exporter.inputs.tokenizer import LoadedTokenizer

FLOAT32 = "float32"  # any type except uint8, which gguf reads as quantized bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor in the GGUF."""

    name: str
    shape: tuple[int, ...]
    """Shape with the rows first, as in numpy; ggml's order is the reverse."""
    type: GGMLType
    """The type in which the converter would store it."""
    values: Node
    """Node whose evaluation reads, merges and rearranges the values; it can run again and again."""


@dataclass(frozen=True, slots=True)
class Header:
    """All bytes of a file before its data, padded."""

    content: bytes
    tensors: tuple[str, ...]
    """Names of the tensors that follow, in order."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """The properties of a tokenizer on which an export's time depends."""

    strings: int
    """Number of tokens and merges."""
    seconds: float
    """Time for keys that are kept for the next export; 0 if they were kept already."""
    content: str
    """Hash of the tokenizer's files; empty if the keys depend on more than them."""


NO_TOKENS = TokenFacts(0, 0.0, "")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted model without its values, before quantization."""

    slots: tuple[Slot, ...]
    writer: Any  # gguf.GGUFWriter, untyped: holds the metadata
    ftype: int
    """general.file_type that the converter would write."""
    used: frozenset[str] = frozenset()
    """The checkpoint's tensors that the slots are made of."""
    loaded: LoadedTokenizer | None = None
    """transformers' tokenizer, if it corrected the token keys; it uses much memory."""
    ignored: tuple[str, ...] = ()
    """Settings that llama.cpp ignores, as sentences; its answers differ from transformers'."""
    tokenizer_hash: str = ""
    """Hash of the tokenizer's files; empty if the token keys depend on more than them."""
    tokens_s: float = 0.0
    """Seconds for token keys that are kept for the next export; 0 if they were kept already."""

    def token_facts(self) -> TokenFacts:
        """Facts about the vocabulary and what it took."""
        keys = self.writer.kv_data[0]
        found = (keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
        strings = sum(len(one.value) for one in found if one is not None)
        return TokenFacts(strings, self.tokens_s, self.tokenizer_hash)

    def headers(
        self,
        types: dict[str, GGMLType],
        *,
        ftype: int,
        provenance: Mapping[str, str | int] | None = None,
        vocabulary: bool = True,
        split_max: int = 0,
    ) -> list[Header]:
        """Headers with metadata, `ftype` and tensor infos in order, one per file.

        split_max: bytes of tensors per file, except for a single larger one; 0 for no limit.
        """
        import gguf

        writer = gguf.GGUFWriter(path=None, arch=self.writer.arch, split_max_size=split_max)
        writer.kv_data = [
            {
                key: value
                for key, value in self.writer.kv_data[0].items()
                if vocabulary or not key.startswith("tokenizer.")
            }
        ]
        writer.remove_key("general.file_type")
        writer.add_file_type(ftype)
        for key, value in (provenance or {}).items():
            (writer.add_uint32 if isinstance(value, int) else writer.add_string)(key, value)
        shapes = {slot.name: slot.shape for slot in self.slots}
        for name, stored in types.items():
            kind = gguf.GGMLQuantizationType(stored.number)
            nbytes = stored.nbytes(shapes[name])
            writer.add_tensor_info(name, shapes[name], FLOAT32, nbytes, raw_dtype=kind)
        return headers_of(writer)


def headers_of(writer: Any) -> list[Header]:
    """The bytes that a GGUFWriter writes before the data of each of its files."""
    if len(writer.tensors) == 1:
        writer.split_max_size = 0  # avoids its warning
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        path = Path(folder) / "header.gguf"
        writer._pack_val = partial(pack_value, writer._pack_val)  # noqa: SLF001
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        contents = [shard.read_bytes() for shard in writer.format_shard_names(path)]
    return [
        Header(content + bytes(-len(content) % DEFAULT_ALIGNMENT), tuple(tensors))
        for content, tensors in zip(contents, writer.tensors, strict=True)
    ]


def pack_value(
    pack: Callable[..., bytes], value: Any, kind: Any, add_vtype: bool, sub_type: Any = None
) -> bytes:
    """Pack a value as GGUFWriter's `_pack_val` (`pack`) does, but arrays at once.

    It packs an array item by item, which takes up to a second for a vocabulary.
    """
    items = isinstance(value, list | tuple) and kind.name == "ARRAY" and sub_type is None
    packed = pack_items(value) if items else None
    if packed is None:
        return pack(value, kind, add_vtype, sub_type)
    # one item gives the types: its bytes begin with the array's type, the items' and a count
    head = pack(value[:1], kind, add_vtype)[: 8 if add_vtype else 4]
    return head + LENGTH.pack(len(value)) + packed


LENGTH = struct.Struct("<Q")


def pack_items(values: Sequence[Any]) -> bytes | None:
    """The packed items of a GGUF array if all are strings, integers or floats; None otherwise."""
    kinds = set(map(type, values))
    if not kinds:
        return None
    if kinds <= {str, bytes}:
        parts = [b""] * (2 * len(values))
        parts[1::2] = [text.encode() if isinstance(text, str) else text for text in values]
        parts[::2] = map(LENGTH.pack, map(len, parts[1::2]))
        return b"".join(parts)
    if kinds == {float}:
        return struct.pack(f"<{len(values)}f", *values)
    if all(issubclass(kind, int) and kind is not bool for kind in kinds):
        return struct.pack(f"<{len(values)}i", *values)
    return None


@dataclass(frozen=True, slots=True)
class Layout:
    """The offset of each tensor's data."""

    offsets: dict[str, int]
    """Bytes from the start of the file."""
    size: int
    """Bytes of the whole file."""


def lay_out(
    header_nbytes: int, types: dict[str, GGMLType], shapes: dict[str, tuple[int, ...]]
) -> Layout:
    """Place the tensors of `types` in order, each aligned, after an aligned header."""
    offsets, end = {}, header_nbytes
    for name, kind in types.items():
        offsets[name] = end
        end += kind.nbytes(shapes[name])
        end += -end % DEFAULT_ALIGNMENT
    return Layout(offsets, end)
