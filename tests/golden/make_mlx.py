"""Make mlx.safetensors: what MLX itself makes of its quantized weights and of its adapters.

    pip install 'mlx[cpu]' mlx-lm && python tests/golden/make_mlx.py

Run by hand, where MLX is installed; the tests read the file and need no MLX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

HERE = Path(__file__).parent
SCALE, RANK, WIDTH, INNER, EXPERTS = 3.0, 2, 12, 8, 3


def quantized() -> dict[str, mx.array]:
    made = {}
    for bits in (2, 3, 4, 5, 6, 8):
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            stem = f"w{bits}.{str(dtype).rpartition('.')[2]}"
            weight = mx.random.normal((3, 64)).astype(dtype)
            packed, scales, biases = mx.quantize(weight, group_size=32, bits=bits)
            made |= {f"{stem}.weight": packed, f"{stem}.scales": scales, f"{stem}.biases": biases}
            made[f"expected.{stem}"] = mx.dequantize(packed, scales, biases, 32, bits)
    return made


def adapted() -> dict[str, mx.array]:
    """Each kind of module: its weight, what training changes, and the fused weight."""
    bases: dict[str, tuple[Any, Any]] = {
        "linear": (nn.Linear(WIDTH, INNER, bias=False), LoRALinear),
        "dora": (nn.Linear(WIDTH, INNER, bias=False), DoRALinear),
        "embed_tokens": (nn.Embedding(INNER, WIDTH), LoRAEmbedding),
        "switch_mlp.up_proj": (SwitchLinear(WIDTH, INNER, EXPERTS, bias=False), LoRASwitchLinear),
    }
    made = {}
    for name, (base, kind) in bases.items():
        layer = kind.from_base(base, r=RANK, scale=SCALE)
        layer.lora_b = mx.random.normal(layer.lora_b.shape)
        if "m" in layer:
            layer.m = layer.m * 1.5
        made[f"{name}.base"] = base.weight
        made |= {
            f"{name}.{role}": layer[role] for role in ("lora_a", "lora_b", "m") if role in layer
        }
        made[f"{name}.fused"] = layer.fuse().weight
    return made


if __name__ == "__main__":
    mx.random.seed(0)
    mx.save_safetensors(
        str(HERE / "mlx.safetensors"), {**quantized(), **adapted()}, {"format": "mlx"}
    )
