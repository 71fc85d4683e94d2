"""Descriptions of the models for Ollama's clients: size, digest, capabilities, metadata."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any, TypeAlias

from exporter.core.ggml_types import FTYPES
from exporter.core.gguf import Array, GGUFFile, Value, read_gguf
from runtime.engine.purpose import purpose_of
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.ollama.ollama_response import stamp

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
TEMPLATE = "tokenizer.chat_template"
ITEMS_MAX = 16  # the longest array that is listed
THINKS = re.compile(r"enable_thinking|reasoning_content|reasoning_effort|<think>|\bthinking\b")
GAPS = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
PATH = re.compile(r"(?:file:|~?[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]).*", re.DOTALL)
FILES = re.compile(r"quantize\.imatrix\.(?:file|dataset)")
"""Metadata keys whose values are file names on the exporting machine."""


def tag(resolved: ResolvedModel) -> Json:
    """A model's entry in /api/tags."""
    return {
        "name": resolved.id,
        "model": resolved.id,
        "modified_at": modified(resolved),
        "size": size(resolved),
        "digest": digest(resolved),
        "details": details(resolved),
    }


def shown(resolved: ResolvedModel) -> Json:
    """The answer of /api/show for a model."""
    header = resolved.model.header
    return {
        "license": header.text("general.license") or "",
        "modelfile": f"FROM {resolved.id}\n",
        "parameters": "",
        "template": resolved.template,
        "details": details(resolved),
        "model_info": model_info(header),
        "capabilities": capabilities(resolved),
        "modified_at": modified(resolved),
    }


def details(resolved: ResolvedModel) -> Json:
    header = resolved.model.header
    families = [header.architecture, *(["clip"] if resolved.model.projector else [])]
    return {
        "parent_model": resolved.base if resolved.adapter else "",
        "format": "gguf",
        "family": header.architecture,
        "families": families,
        "parameter_size": counted(header.parameters),
        "quantization_level": quantization(header),
    }


def counted(parameters: int) -> str:
    """The number of parameters in the form of model cards, such as 1.5B."""
    for unit, size_, digits in (("B", 10**9, 1), ("M", 10**6, 0), ("K", 10**3, 0)):
        if parameters >= size_:
            return f"{parameters / size_:.{digits}f}{unit}"
    return str(parameters)


def quantization(header: GGUFFile) -> str:
    """The name of the file's quantization; without one, the type of most of its bytes."""
    number = header.number("general.file_type")
    for name, ftype in FTYPES.items():
        if ftype == number:
            return name
    nbytes: dict[str, int] = {}
    for tensor in header.tensors:
        nbytes[tensor.type.name] = nbytes.get(tensor.type.name, 0) + tensor.nbytes
    return max(nbytes, key=lambda name: nbytes[name], default="unknown")


def files(resolved: ResolvedModel) -> tuple[Path, ...]:
    """The files of a model: shards, projector, adapter."""
    header, projector = resolved.model.header, resolved.model.projector
    found = [*(header.shards or (header.path,)), *([projector] if projector else [])]
    return (*found, *([resolved.adapter.path] if resolved.adapter else []))


def size(resolved: ResolvedModel) -> int:
    """Total size of the files, in bytes."""
    return sum(path.stat().st_size for path in files(resolved) if path.exists())


def modified(resolved: ResolvedModel) -> str:
    """The modification time of the newest file."""
    return stamp(
        max((path.stat().st_mtime_ns for path in files(resolved) if path.exists()), default=0)
    )


def digest(resolved: ResolvedModel) -> str:
    """64 hex digits that change with the model.

    Ollama's digest is the sha256 of whole files, which takes minutes to read; this one covers
    the headers, and the files' sizes and times.
    """
    header, sha = resolved.model.header, hashlib.sha256()
    sha.update(repr((header.metadata, layout(header), resolved.lora_scales)).encode())
    if resolved.adapter is not None and resolved.adapter.path.exists():
        adapter = read_gguf(resolved.adapter.path)
        sha.update(repr((adapter.metadata, layout(adapter))).encode())
    for path in files(resolved):
        if path.exists():
            stat = path.stat()
            sha.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
    return sha.hexdigest()


def layout(header: GGUFFile) -> list[tuple[str, tuple[int, ...], str]]:
    return [(tensor.name, tensor.shape, tensor.type.name) for tensor in header.tensors]


def capabilities(resolved: ResolvedModel) -> list[str]:
    """The model's capabilities, by Ollama's names."""
    header = resolved.model.header
    template = resolved.template
    if purpose_of(header) != "answers":
        return ["embedding"]
    found = {
        "completion": True,
        "tools": bool(re.search(r"\btools\b", template)),
        "insert": any(key in header.metadata for key in GAPS),
        "vision": resolved.model.projector is not None,
        "thinking": bool(THINKS.search(template)),
    }
    return [name for name, is_there in found.items() if is_there]


def context(header: GGUFFile) -> int | None:
    """The context that the model was trained with, in tokens."""
    return header.number(f"{header.architecture}.context_length")


def model_info(header: GGUFFile) -> Json:
    """The metadata, without long arrays and without paths of the exporting machine."""
    metadata = {
        key: plain(value)
        for key, value in header.metadata.items()
        if key != TEMPLATE and not tells_a_path(key, value)
    }
    return {**metadata, "general.parameter_count": header.parameters}


def tells_a_path(key: str, value: Value) -> bool:
    if FILES.fullmatch(key):
        return True
    if isinstance(value, Array):
        return any(tells_a_path("", item) for item in value.items)
    # parts of a template or pattern may look like a path; they contain line ends
    is_name = isinstance(value, str) and "\n" not in value
    return is_name and bool(PATH.fullmatch(str(value)))


def plain(value: Value) -> object:
    """A value for JSON; None for a long array and for numbers that JSON lacks."""
    if isinstance(value, Array):
        whole = value.length <= ITEMS_MAX and len(value.items) == value.length
        return [plain(item) for item in value.items] if whole else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
