"""Peak memory of exports of large shapes, and how long a plan takes: each against its bound.

    python benchmarks/memory.py [--folder F] [--case NAME]... [--write]

The models have random bf16 weights, made shard by shard; 13 GB for the largest. The bound is
0.8 GB and three times the largest tensor in float32; of stacked experts, one expert counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.export import measure  # noqa: E402
from exporter.llamacpp.toolchain import find_toolchain, host_facts  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "memory.json"
FLOOR = 800_000_000
PLAN_LIMIT_S = 3.0
SHARD_LAYERS = 4
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Case:
    """A model's shape and the adapter on it."""

    config: dict[str, Any]
    adapter: dict[str, Any] = field(default_factory=dict)
    experts: int = 0
    dry_run: bool = False


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
ONE_B = LLAMA | {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 8192,
}  # fmt: skip
SEVEN_B = LLAMA | {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
MOE = ONE_B | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": 768,
    "num_hidden_layers": 8, "num_local_experts": 64, "num_experts_per_tok": 4,
}  # fmt: skip
CASES = {
    "7B": Case(SEVEN_B, dry_run=True),
    "1B DoRA": Case(ONE_B, {"use_dora": True}),
    "MoE, stacked experts": Case(
        MOE, {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}, experts=64
    ),
}


def matrices(config: dict[str, Any], layer: int, *, experts: int) -> dict[str, Shape]:
    """One layer's linear modules: (out, in)."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    outs = {
        "q": head * config["num_attention_heads"],
        "k": head * config["num_key_value_heads"],
        "v": head * config["num_key_value_heads"],
    }
    prefix = f"model.layers.{layer}"
    found = {f"{prefix}.self_attn.{name}_proj": (rows, width) for name, rows in outs.items()}
    found[f"{prefix}.self_attn.o_proj"] = (width, outs["q"])
    parts = ("w1", "w3", "w2") if experts else ("gate_proj", "up_proj", "down_proj")
    stems = [f"{prefix}.block_sparse_moe.experts.{n}" for n in range(experts)]
    for stem in stems or [f"{prefix}.mlp"]:
        shapes = ((inner, width), (inner, width), (width, inner))
        found |= {f"{stem}.{part}": shape for part, shape in zip(parts, shapes, strict=True)}
    return found


def vectors(config: dict[str, Any], layer: int, *, experts: int) -> dict[str, tuple[int, ...]]:
    """One layer's norms, and its router."""
    prefix, width = f"model.layers.{layer}", config["hidden_size"]
    found: dict[str, tuple[int, ...]] = {
        f"{prefix}.input_layernorm.weight": (width,),
        f"{prefix}.post_attention_layernorm.weight": (width,),
    }
    if experts:
        found[f"{prefix}.block_sparse_moe.gate.weight"] = (experts, width)
    return found


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], *, seed: int) -> None:
    """Random bf16 of about 0.01 to 0.1, one tensor in memory at a time."""
    import numpy as np

    rng = np.random.default_rng(seed)
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in shapes.values():
            bits = rng.integers(0, 1 << 16, math.prod(shape), dtype=np.uint16)
            file.write(((bits & 0x81FF) | 0x3C00).tobytes())


def make_base(folder: Path, case: Case) -> Path:
    """A sharded checkpoint of the case's shape."""
    from tests.support.tiny import make_tokenizer

    folder.mkdir(parents=True)
    config = case.config
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder)
    ends = (config["vocab_size"], config["hidden_size"])
    shards: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": ends, "lm_head.weight": ends,
         "model.norm.weight": ends[1:]}
    ]  # fmt: skip
    for first in range(0, config["num_hidden_layers"], SHARD_LAYERS):
        shard: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + SHARD_LAYERS, config["num_hidden_layers"])):
            linear = matrices(config, layer, experts=case.experts)
            shard |= {f"{name}.weight": shape for name, shape in linear.items()}
            shard |= vectors(config, layer, experts=case.experts)
        shards.append(shard)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, seed=number)
        weight_map |= dict.fromkeys(shard, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def make_adapter(folder: Path, base: Path, case: Case, *, rank: int = 16) -> Path:
    """Random float32 matrices on every linear module, stacked where the case says so."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 32,
        "base_model_name_or_path": str(base), "target_modules": "all-linear",
        "peft_version": "0.21.2",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings | case.adapter))
    tensors = {}
    for layer in range(case.config["num_hidden_layers"]):
        pairs = {
            name: (shape, rank)
            for name, shape in matrices(case.config, layer, experts=case.experts).items()
            if ".experts." not in name
        }
        if case.experts:
            width, inner = case.config["hidden_size"], case.config["intermediate_size"]
            stem = f"model.layers.{layer}.mlp.experts"
            pairs[f"{stem}.base_layer"] = ((2 * inner, width), rank * case.experts)
            pairs[stem] = ((width, inner), rank * case.experts)
        for name, ((rows, columns), count) in pairs.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(count, columns) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, count) * 0.02
            if case.adapter.get("use_dora"):
                tensors[f"{key}.lora_magnitude_vector"] = torch.rand(rows) + 1
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def largest(case: Case) -> int:
    """Bytes of the largest tensor in float32."""
    layer = matrices(case.config, 0, experts=case.experts)
    ends = case.config["vocab_size"] * case.config["hidden_size"]
    return 4 * max(ends, *(math.prod(shape) for shape in layer.values()))


def run(name: str, folder: Path) -> dict[str, Any]:
    case, home = CASES[name], folder / name.replace(" ", "-").replace(",", "")
    if not (home / "adapter").exists():
        shutil.rmtree(home, ignore_errors=True)
        make_adapter(home / "adapter", make_base(home / "base", case), case)
    # the tokenizer is of another model, which a verification would say
    options = ["--quiet", "--no-verify"]
    argv = [sys.executable, "-m", "exporter", "export", str(home / "adapter"), *options]
    output = home / "out.gguf"
    cost = measure([*argv, "-o", str(output), "--force"])
    output.unlink()
    bound = FLOOR + 3 * largest(case)
    found: dict[str, Any] = asdict(cost) | {"largest_float32_bytes": largest(case), "bound": bound}
    found["held"] = cost.rss_bytes <= bound
    if case.dry_run:
        plan = min(measure([*argv, "-o", str(output), "--dry-run"]).wall_s for _ in range(3))
        found |= {"plan_s": plan, "plan_limit_s": PLAN_LIMIT_S, "plan_held": plan <= PLAN_LIMIT_S}
    print(
        f"{name}: {cost.rss_bytes / 1e9:.2f} GB of {bound / 1e9:.2f} GB allowed,"
        f" {cost.wall_s:.0f} s" + (f"; plan {found['plan_s']:.1f} s" if case.dry_run else "")
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the models here between runs")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--write", action="store_true", help="record the figures")
    options = parser.parse_args()
    find_toolchain()
    with tempfile.TemporaryDirectory(prefix="decant-bench-") as temporary:
        folder = options.folder or Path(temporary)
        results = {name: run(name, folder) for name in options.case or CASES}
    if options.write:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            check=True,
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
        ).stdout.strip()
        machine = f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}"
        told = {"machine": machine, "commit": commit, "cases": results}
        RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    if not all(found["held"] and found.get("plan_held", True) for found in results.values()):
        raise SystemExit("a bound is broken")


if __name__ == "__main__":
    main()
