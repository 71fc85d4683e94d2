"""Make mlx_float.safetensors: MLX's own values of weights in mxfp4, mxfp8, nvfp4 and 1 bit.

    pip install 'mlx[cpu]' && python tests/golden/make_mlx_float.py

Run by hand, where MLX is installed; the tests read the file and need no MLX. The codes and the
scales are random, so that every code occurs.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

HERE = Path(__file__).parent
ROWS, COLUMNS = 4, 256
MODES = {"mxfp4": (4, 32, (100, 150)), "mxfp8": (8, 32, (100, 150)), "nvfp4": (4, 16, (1, 127))}
"""Bits of a code, values in a group, and the range of the scales' bytes: all of them are finite."""


def codes(random: np.random.Generator, bits: int) -> np.ndarray:
    """(ROWS, COLUMNS * bits / 32) words; none holds E4M3's two codes that are no number."""
    held = random.integers(0, 256, (ROWS, COLUMNS * bits // 8), dtype=np.uint8)
    return np.where(held & 0x7F == 0x7F, 0, held).astype(np.uint8).view(np.uint32)


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    made: dict[str, mx.array] = {}
    for mode, (bits, group, scales) in MODES.items():
        packed = mx.array(codes(random, bits))
        held = random.integers(*scales, (ROWS, COLUMNS // group), dtype=np.uint8)
        made |= {f"{mode}.weight": packed, f"{mode}.scales": mx.array(held)}
        made[f"expected.{mode}"] = mx.dequantize(
            packed, mx.array(held), group_size=group, bits=bits, mode=mode, dtype=mx.float32
        )
    plain = mx.array(random.normal(size=(ROWS, COLUMNS)).astype(np.float32))
    names = ("affine1.weight", "affine1.scales", "affine1.biases")
    made |= dict(zip(names, mx.quantize(plain, group_size=32, bits=1), strict=True))
    made["expected.affine1"] = mx.dequantize(*(made[name] for name in names), 32, 1)
    mx.save_safetensors(str(HERE / "mlx_float.safetensors"), made, {"format": "mlx"})


if __name__ == "__main__":
    main()
