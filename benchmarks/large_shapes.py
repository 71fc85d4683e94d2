"""Folders of large models whose weights are holes: headers alone, for `--dry-run`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.memory import LLAMA, SHARD_LAYERS, matrices, vectors  # noqa: E402

RANK = 16
VOCABULARY = 128_256  # tokens of Llama 3


@dataclass(frozen=True, slots=True)
class Large:
    """A model's shape."""

    config: dict[str, Any]
    experts: int = 0


def llama(layers: int, width: int, inner: int, heads: int) -> Large:
    """A Llama with the vocabulary and the key heads of Llama 3."""
    return Large(LLAMA | {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    })  # fmt: skip


def mixtral(layers: int, width: int, inner: int, heads: int, experts: int) -> Large:
    """A Mixtral with stacked experts, all with the vocabulary of Llama 3."""
    shape = llama(layers, width, inner, heads).config
    config = shape | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "num_local_experts": experts, "num_experts_per_tok": 8,
    }  # fmt: skip
    return Large(config, experts)


LARGE = {
    "70 B": llama(80, 8192, 28672, 64),
    "405 B": llama(126, 16384, 53248, 128),
    "1 T, 384 experts": mixtral(60, 7168, 2048, 64, 384),
}
"""Llama 3.1 70B and 405B, and a mixture of experts of about Kimi K2's size."""


def write_headers(path: Path, kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file with a header and a hole; kind: BF16 or F32."""
    item = {"BF16": 2, "F32": 4}[kind]
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + item * math.prod(shape)
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def make_large(folder: Path, large: Large) -> tuple[Path, Path]:
    """A base and an adapter on all linear modules but experts', without content."""
    from tests.support.tiny import make_tokenizer

    base, adapter, config = folder / "base", folder / "adapter", large.config
    base.mkdir(parents=True)
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    make_tokenizer(base)
    ends = (config["vocab_size"], config["hidden_size"])
    shards: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": ends, "lm_head.weight": ends, "model.norm.weight": ends[1:]}
    ]
    pairs: dict[str, tuple[int, ...]] = {}
    layers = config["num_hidden_layers"]
    for first in range(0, layers, SHARD_LAYERS):
        shard: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + SHARD_LAYERS, layers)):
            linear = matrices(config, layer, experts=large.experts)
            shard |= {f"{name}.weight": shape for name, shape in linear.items()}
            shard |= vectors(config, layer, experts=large.experts)
            for name, (rows, columns) in linear.items():
                if ".experts." not in name:
                    key = f"base_model.model.{name}"
                    pairs[f"{key}.lora_A.weight"] = (RANK, columns)
                    pairs[f"{key}.lora_B.weight"] = (rows, RANK)
        shards.append(shard)
    places = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        write_headers(base / name, "BF16", shard)
        places |= dict.fromkeys(shard, name)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (base / "model.safetensors.index.json").write_text(index)
    write_headers(adapter / "adapter_model.safetensors", "F32", pairs)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32,
        "base_model_name_or_path": str(base), "target_modules": "all-linear",
        "peft_version": "0.21.2",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter
