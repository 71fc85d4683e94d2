"""Largest error of a stored value, by the type it is stored in.

The bound of a value follows from the expected values of its block, which decide the block's scale.
Nothing is taken from the file, where a damaged scale would excuse its damage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.core.ggml_types import GGMLType

if TYPE_CHECKING:
    import numpy as np

HALF_ULP = {"F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}  # of the value, to nearest
SUBNORMAL = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-25}
SCALE_ULP = 2.0**-25  # half a step of the smallest float16, the type of block scales
IMPORTANCE = 4.0  # an importance matrix lets unimportant values deviate more: 3.3 times, measured
STRAY, STRAYS, GROUP = 4.0, 4, 32
"""With an importance matrix, up to STRAYS values of a GROUP may even exceed that, by STRAY times at
most. Measured on SmolLM2 135M, where few inputs have nearly all the importance: 3 of 32, 1.9 times.
"""
ROUNDED = 2.0**-7  # --merge-dtype base: half an ulp of bfloat16 in the sum, and at most one before


@dataclass(frozen=True, slots=True)
class Bound:
    """Largest error, relative to the sub-block's and the whole block's largest value."""

    sub: int
    """Values that share a scale."""
    of_sub: float
    of_block: float = 0.0
    likeness: float = 0.9
    """Least cosine between expected and stored values; of unrelated ones it is about 0."""
    steps: int = 256
    """Upper limit of the number that multiplies a block's float16 scale."""


# With a scale d for each block and values that are rounded to its nearest multiple:
#   Q8_0  d = max/127: d/2, and 127 roundings of d to float16 -> (0.5 + 127 * 2^-11) / 127
#   Q4_0, Q5_0  d = max/8, max/16; the far end of the other sign is clipped by one d -> 1/8, 1/16
#   Q4_1, Q5_1  d = (max - min)/15, /31, at most 2 max/15, /31; d/2 -> 1/15, 1/31
#   MXFP4  a power of two, steps of up to 4 of 12 between its largest values -> 1/4
#   TQ1_0, TQ2_0, Q2_0  -d, 0 or d with d = max -> 1/2
#   Q1_0  -d or d with d = the mean: of 0 by d, of the largest by no more than itself -> 1
# The others search for the scale with the least squared error, and hold the scales of sub-blocks
# in 4 to 8 bits relative to the largest: the first number is one step (as a value at the edge may
# be clipped) plus 30 %, the second the error by the rounding of scales. Measured over normal,
# heavy-tailed, sparse, one-sided and spiked rows, the largest error was 0.5 to 0.8 of the bound.
BOUNDS = {
    "Q8_0": Bound(32, 0.0045), "Q4_0": Bound(32, 0.127), "Q4_1": Bound(32, 0.069),
    "Q5_0": Bound(32, 0.064), "Q5_1": Bound(32, 0.035), "MXFP4": Bound(32, 0.252),
    "TQ1_0": Bound(256, 0.502, likeness=0.25), "TQ2_0": Bound(256, 0.502, likeness=0.25),
    "Q1_0": Bound(128, 1.005, likeness=0.05), "Q2_0": Bound(64, 0.502, likeness=0.25),
    "IQ4_NL": Bound(32, 0.17), "IQ4_XS": Bound(32, 0.16, 0.04, steps=32 * 127),
    "Q6_K": Bound(16, 0.05, 0.015, steps=128 * 32), "Q5_K": Bound(32, 0.08, 0.035, steps=63 * 32),
    "Q4_K": Bound(32, 0.17, 0.035, steps=63 * 16), "Q3_K": Bound(16, 0.25, 0.15, 0.8),
    "Q2_K": Bound(16, 0.5, 0.4, 0.5),
    "IQ3_S": Bound(32, 1.3, 1.3, 0.25), "IQ3_XXS": Bound(32, 1.0, 1.0, 0.5),
    "IQ2_S": Bound(16, 1.0, 1.0, 0.25), "IQ2_XS": Bound(16, 1.3, 1.3, 0.25),
    "IQ2_XXS": Bound(32, 1.3, 1.3, 0.25), "IQ1_S": Bound(32, 1.3, 1.3, 0.25),
    "IQ1_M": Bound(16, 1.3, 1.3, 0.25),
}  # fmt: skip
UNKNOWN = Bound(32, 1.3, 1.3, 0.25)


def allowed_error(
    expected: np.ndarray[Any, Any],
    kind: GGMLType,
    *,
    rounded: bool = False,
    by_importance: bool = False,
) -> np.ndarray[Any, Any]:
    """The largest error of each value (rows, columns).

    rounded: the merge rounded to 16 bits first; by_importance: quantized with an importance matrix.
    """
    import numpy as np

    size = np.abs(expected)
    first = size * ROUNDED if rounded else np.zeros_like(size)
    if kind.name in HALF_ULP:
        allowed = first + size * HALF_ULP[kind.name] * 1.01 + SUBNORMAL[kind.name]
        return np.asarray(allowed)
    bound = BOUNDS.get(kind.name, UNKNOWN)
    nearby, around = largest(size, bound.sub), largest(size, kind.block)
    limit = bound.of_sub * nearby + bound.of_block * around + bound.steps * SCALE_ULP
    if rounded:
        first = nearby * ROUNDED
    return np.asarray(first + limit * (IMPORTANCE if by_importance else 1.0))


def shares_of(
    error: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any], *, by_importance: bool = False
) -> np.ndarray[Any, Any]:
    """Each error (rows, columns) relative to the allowed one; above 1 it is too large."""
    import numpy as np

    part = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
    if by_importance and part.shape[1] % GROUP == 0:
        groups = part.reshape(-1, GROUP)
        few = (groups > 1).sum(axis=1, keepdims=True) <= STRAYS
        groups[few & (groups > 1) & (groups <= STRAY)] = 1.0
    return np.asarray(part)


def largest(size: np.ndarray[Any, Any], block: int) -> np.ndarray[Any, Any]:
    """The largest value of each value's block, repeated: (rows, columns) of the same shape."""
    import numpy as np

    tops = size.reshape(size.shape[0], -1, block).max(axis=2)
    return np.repeat(tops, block, axis=1)


def likeness(stored: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The cosine between two arrays (rows, columns); 1 if both are zero."""
    import math

    lengths = float((stored * stored).sum()) * float((expected * expected).sum())
    return float((stored * expected).sum()) / math.sqrt(lengths) if lengths > 0 else 1.0


def least_likeness(kind: GGMLType) -> float:
    """The least acceptable `likeness` of a type."""
    return -1.0 if kind.name in HALF_ULP else BOUNDS.get(kind.name, UNKNOWN).likeness
