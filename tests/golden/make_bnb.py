"""Makes bnb.safetensors: what bitsandbytes itself makes of a few small tensors.

Run with bitsandbytes installed (made with 0.50.2, torch 2.13.0, CPU):
    python tests/golden/make_bnb.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

OUTPUT = Path(__file__).with_name("bnb.safetensors")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
KINDS = ("nf4", "fp4")
CASES = [
    *((kind, 64, nested, dtype) for kind in KINDS for nested in (0, 1) for dtype in DTYPES),
    ("nf4", 128, 0, "bf16"),
    ("fp4", 4096, 1, "f16"),
]  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for kind, block, nested, dtype in CASES:
        add_four_bit(tensors, f"{kind}-{block}-{nested}-{dtype}", kind, block, nested, dtype)
    # more blocks than one block of their nested scales has
    add_four_bit(tensors, "many", "nf4", 32, 1, "bf16", shape=(72, 120))
    add_four_bit(tensors, "floats", "nf4", 64, 1, "bf16", shape=(6, 64), storage=torch.bfloat16)
    codes, scales, _ = functional.int8_vectorwise_quant(torch.randn(6, 40).half())
    tensors["int8.weight"], tensors["int8.SCB"] = codes, scales
    tensors["int8.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    expected = functional.int8_vectorwise_dequant(codes, scales)
    tensors["expected.int8"] = expected.to(torch.bfloat16)
    for dtype, shape in (("bf16", (136, 124)), ("f16", (5, 50)), ("f32", (3, 64))):
        add_roundtrip(tensors, dtype, shape)
    made = {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__}
    save_file(tensors, OUTPUT, metadata=made)


def add_four_bit(
    tensors: dict[str, torch.Tensor], name: str, kind: str, block: int, nested: int, dtype: str,
    *, shape: tuple[int, ...] = (5, 50), storage: torch.dtype = torch.uint8,
) -> None:  # fmt: skip
    weight = (torch.randn(shape) * 0.1).to(DTYPES[dtype])
    packed, state = quantize(
        weight, nested, quant_type=kind, blocksize=block, quant_storage=storage
    )
    tensors[f"{name}.weight"] = packed
    for key, value in state.as_dict(packed=True).items():
        tensors[f"{name}.weight.{key}"] = value.contiguous()
    tensors[f"expected.{name}"] = functional.dequantize_4bit(packed, state).contiguous()


def quantize(weight: torch.Tensor, nested: int, **options: Any) -> Any:
    return functional.quantize_4bit(weight, compress_statistics=bool(nested), **options)


def add_roundtrip(tensors: dict[str, torch.Tensor], dtype: str, shape: tuple[int, ...]) -> None:
    weight = (torch.randn(shape) * 0.1).to(DTYPES[dtype])
    weight[0] = 0
    tensors[f"roundtrip.{dtype}"] = weight
    packed, state = quantize(weight, 0, quant_type="nf4", blocksize=64)
    tensors[f"expected.roundtrip-0.{dtype}"] = functional.dequantize_4bit(packed, state)
    # As a GPU does it. The CPU's own kernel finds the scales' codes by a coarse table since
    # 0.49; for float64 bitsandbytes compares with every code.
    state.offset = state.absmax.mean()
    code = functional.create_dynamic_map()
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise(
        (state.absmax - state.offset).double(), code, 256
    )
    state.absmax, state.nested = codes, True
    state.state2 = functional.QuantState(
        absmax=scales, code=code, blocksize=256, dtype=torch.float32
    )
    tensors[f"expected.roundtrip-1.{dtype}"] = functional.dequantize_4bit(packed, state)


if __name__ == "__main__":
    main()
