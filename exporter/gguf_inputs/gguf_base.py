"""A GGUF as the base: its tensors are read back, its settings and tokenizer copied.

A quantized base has lost precision once; adapters are added to its dequantized values, and
quantizing the result loses a second time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import Conversion, Slot
from exporter.convert.lazy_graph import Leaf
from exporter.convert.to_gguf import Outtype
from exporter.core.errors import CheckpointError, ModelError, UnsupportedError
from exporter.core.ggml_types import FTYPES, GGML_TYPES, QUANTS, GGMLType
from exporter.core.gguf import MAGIC, GGUFFile, read_gguf
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.gguf_tensors import FLOATS, gguf_tensor
from exporter.llamacpp.converter_import import imported

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.apply import MergedTensors

ARCHITECTURE = "gguf_architecture"
"""Key of the config: the model's architecture in GGUF's spelling."""
NOT_COPIED = re.compile(
    r"GGUF\.|general\.(architecture|file_type|alignment)$|split\.|quantize\.imatrix\."
    r"|decant\.(?!tokenizer\.)"
)
QUANT = re.compile(
    r"[-._](" + "|".join(sorted({*QUANTS, *(kind.name for kind in GGML_TYPES)}, key=len)[::-1])
    + r")$", re.IGNORECASE,
)  # fmt: skip
HASHED = "sha256-"
PLAIN_ARRAYS = ("STRING", "FLOAT32", "INT32")  # array types that a writer infers
WHOLE = "use a release of this model as safetensors, which --base takes as a folder or ORG/NAME"


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF, whatever its name; Ollama names its files by hash."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_name(path: Path) -> str:
    """The model's name for people: the file's name without the quantization at its end.

    Ollama names its files by hash; the name of such a file is the one in its header.
    """
    if path.name.startswith(HASHED) and is_gguf(path):
        return read_gguf(path).text("general.name") or path.name
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf"))
    return QUANT.sub("", stem) or stem


def open_gguf(path: Path, toolchain: Toolchain) -> Checkpoint:
    """The tensors of a GGUF by GGUF's names, with quantized ones dequantized when read.

    Raises CheckpointError for a file that is not a model, UnsupportedError for types that cannot be
    read back.
    """
    try:
        file = read_gguf(path)
    except ModelError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    if file.is_adapter:
        raise CheckpointError(
            f"`{path}` is an adapter, not a base", hint="name it as ADAPTER, and its base as --base"
        )
    if not file.tensors:
        raise CheckpointError(f"`{path}` holds no tensors", hint="is it a vocabulary alone?")
    refuse_unreadable(file, toolchain)
    tensors = {info.name: gguf_tensor(info, info.name) for info in file.tensors}
    return Checkpoint(path, {ARCHITECTURE: file.architecture}, tensors, gguf_name(path))


def refuse_unreadable(file: GGUFFile, toolchain: Toolchain) -> None:
    """Raise UnsupportedError for a type that llama.cpp's Python cannot dequantize."""
    import numpy as np

    with imported(toolchain):
        import gguf

        for kind in sorted({info.type for info in file.tensors}, key=lambda kind: kind.name):
            if kind.name in FLOATS:
                continue
            try:
                block = np.zeros((1, kind.block_nbytes), np.uint8)
                gguf.quants.dequantize(block, gguf.GGMLQuantizationType(kind.number))
            except (NotImplementedError, ValueError) as error:
                name = next(info.name for info in file.tensors if info.type == kind)
                raise UnsupportedError(
                    f"`{name}` in `{file.path}` is {kind.name}, which cannot be read back",
                    hint=WHOLE,
                ) from error


def refuse_gguf_base(base: Path | None, to: str) -> None:
    """Raise UnsupportedError for an output that needs the base's config and tokenizer files."""
    if base is not None and is_gguf(base):
        raise UnsupportedError(
            f"`{base}` is a GGUF, and --to {to} needs the base's config.json and tokenizer",
            hint=f"leave out --to {to}: the result is a GGUF; or {WHOLE}",
        )


def lossy_types(checkpoint: Checkpoint) -> list[str]:
    """The quantized types of a GGUF base, by name; empty if all tensors have 16 bits or more."""
    kinds = {info.type.name for info in read_gguf(checkpoint.folder).tensors}
    return sorted(kinds - set(FLOATS))


def gguf_conversion(
    tensors: MergedTensors, toolchain: Toolchain, *, outtype: Outtype, model_name: str
) -> Conversion:
    """The merged model laid out like its GGUF base: same names, shapes and settings."""
    path = tensors.plan.checkpoint.folder
    file = read_gguf(path)
    slots = tuple(
        Slot(info.name, info.shape, slot_type(info.type, outtype), Leaf(info.name))
        for info in file.tensors
    )
    with imported(toolchain):
        import gguf

        writer = gguf.GGUFWriter(path=None, arch=file.architecture)
        for key, field in gguf.GGUFReader(path).fields.items():
            if not NOT_COPIED.match(key):
                copy_field(writer, key, field)
        if "general.quantization_version" not in file.metadata:
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if tensors.plan.adapters:
            writer.remove_key("general.name")
            writer.add_name(model_name)
    return Conversion(slots, writer, FTYPES["F16"], frozenset(info.name for info in file.tensors))


def copy_field(writer: Any, key: str, field: Any) -> None:
    """Add a setting of another file, of the same type."""
    kind, *inner = field.types
    sub = inner[-1] if inner else None
    value = field.contents()
    if sub is not None and (not value or sub.name not in PLAIN_ARRAYS):
        writer.add_key_value(key, value, kind, sub_type=sub)
    else:
        writer.add_key_value(key, value, kind)


def slot_type(stored: GGMLType, outtype: Outtype) -> GGMLType:
    """The type in which the converter would store a tensor: vectors and the like stay in
    float32.
    """
    if stored.name == "F32" or outtype == "F32":
        return GGMLType.by_name("F32")
    if outtype != "auto":
        return GGMLType.by_name(outtype)
    return stored if stored.name == "BF16" else GGMLType.by_name("F16")
