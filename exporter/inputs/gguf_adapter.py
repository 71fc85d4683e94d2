"""GGUF adapters as input: config and tensors in PEFT's form, under GGUF's names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.gguf import Array, GGUFFile, TensorInfo, read_gguf
from exporter.inputs.gguf_tensors import gguf_tensor
from exporter.inputs.lazy_tensor import Turned

if TYPE_CHECKING:
    from exporter.inputs.lazy_tensor import Tensor

PREFIX = "base_model.model."
KEPT_ITEMS = 64  # items of an array, such as an aLoRA's tokens
A, B, WEIGHT = ".lora_a", ".lora_b", ".weight"
EMBEDDING = "token_embd"
ARCHITECTURE = "architecture"
"""Key of the config: the model's architecture in GGUF's spelling."""
STACK = 3  # dimensions
HUB = "https://huggingface.co/"
MERGE_THE_SOURCE = "export the PEFT or MLX adapter that it was made of"


def read_adapter(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """A GGUF adapter's config and tensors in PEFT's form, with modules under GGUF's names.

    Pairs are A (rank, n_in) and B (n_out, rank). Raises AdapterError for a file that is not a LoRA,
    UnsupportedError for a tensor that is not half of a pair.
    """
    file = read_gguf(path, keep_items=KEPT_ITEMS)
    if not file.is_adapter:
        raise AdapterError(
            f"`{path}` is a whole model, no adapter", hint=f"`decant chat {path}` runs it"
        )
    if (kind := file.text("adapter.type")) != "lora":
        raise AdapterError(
            f"`{path}` is an adapter of type {kind!r}; llama.cpp and decant know only `lora`",
            hint=MERGE_THE_SOURCE,
        )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for info in file.tensors:
        for name, tensor in named_halves(info, path):
            tensors[name] = tensor
            if name.endswith(".lora_B.weight"):
                ranks[name.removeprefix(PREFIX).removesuffix(".lora_B.weight")] = tensor.shape[-1]
    return config_of(file, ranks), tensors


def config_of(file: GGUFFile, ranks: dict[str, int]) -> dict[str, object]:
    """The settings in PEFT's form. Without an alpha the pairs are added unscaled."""
    alpha = file.metadata.get("adapter.lora.alpha")
    tokens = file.metadata.get("adapter.alora.invocation_tokens")
    named = ("decant.base.repo", "decant.adapter.trained_on", "general.base_model.0.repo_url")
    base = next(filter(None, map(file.text, named)), "")
    escaped = {re.escape(module): rank for module, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base.removeprefix(HUB) or None,
        "r": next(iter(ranks.values()), 1),
        "lora_alpha": alpha or 1,
        "rank_pattern": escaped,
        "alpha_pattern": {} if alpha else escaped,
        "alora_invocation_tokens": list(tokens.items) if isinstance(tokens, Array) else None,
        ARCHITECTURE: file.architecture,
    }


def named_halves(info: TensorInfo, path: Path) -> list[tuple[str, Tensor]]:
    """A stored A (rank, n_in) or B (n_out, rank) under PEFT's name; one per stacked expert.

    Raises UnsupportedError for a tensor that is not half of a pair.
    """
    stem, dot, half = info.name.rpartition(".")
    if f"{dot}{half}" not in (A, B) or not stem.endswith(WEIGHT):
        raise UnsupportedError(
            f"`{path}` holds `{info.name}`, which is not half of a pair: it cannot be merged",
            hint=MERGE_THE_SOURCE,
        )
    module, is_a = stem.removesuffix(WEIGHT), f"{dot}{half}" == A
    if module == EMBEDDING:  # stored for a look-up by rows, with A and B exchanged
        name = f"{PREFIX}{module}.{'lora_B' if is_a else 'lora_A'}.weight"
        stored = gguf_tensor(info, name)
        return [(name, stored if is_a else Turned(name, stored))]
    role = "lora_A" if is_a else "lora_B"
    shape = info.shape if len(info.shape) > 1 or not is_a else (1, *info.shape)
    if len(shape) != STACK:
        name = f"{PREFIX}{module}.{role}.weight"
        return [(name, gguf_tensor(info, name, shape))]
    count, *rest = shape
    step = info.nbytes // count
    parts = []
    for number in range(count):
        name = f"{PREFIX}{module}#{number}.{role}.weight"
        part = replace(info, shape=tuple(rest), offset=info.offset + number * step)
        parts.append((name, gguf_tensor(part, name)))
    return parts
