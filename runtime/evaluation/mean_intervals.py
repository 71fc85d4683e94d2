"""Intervals of means, and of other ratios of sums, by formulas: for skewed and for bounded values.

Each works on pseudo-values, which say how much each item contributes to a figure; those of a mean
are the values (Tukey 1958).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.evaluation.exact_tests import Z, arcsine_interval, t_quantile

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

RESERVE = 1.05  # factor of the half-width: fewer than 5 % of equal models are found different
LEAST_SKEWED = 3  # items from which a skewness can be computed
FLAT = 1e-6  # skewness: with less, the correction is nothing but rounding
ADDED = 0.5  # items, added to a variance that few unequal items estimate
LARGEST = 30.0  # an exponent: an interval's end beyond it says nothing
TOGETHER = 4  # tokens that are right or wrong together, before there is evidence of more or fewer


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure with the moments of its items' pseudo-values."""

    value: float
    n: int
    deviation: float
    skewness: float


def spread(figure: Callable[[Floats], Floats], statistics: Floats) -> Spread:
    """The figure's moments, by leaving out one item at a time.

    figure: of sums, shape (..., k) to (...). statistics: (n, k), n > 1.
    """
    import numpy as np

    n, _ = statistics.shape
    total = statistics.sum(0)
    value = float(figure(total))
    pseudo = n * value - (n - 1) * figure(total - statistics)  # (n,)
    away = pseudo - pseudo.mean()
    square = float(np.mean(away**2))
    deviation = math.sqrt(square * n / (n - 1))
    is_flat = n < LEAST_SKEWED or deviation <= np.finfo(float).eps * abs(value)
    if is_flat:
        return Spread(value, n, deviation, 0.0)
    skewness = float(np.mean(away**3)) / square**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    return Spread(value, n, deviation, skewness)


def mean_interval(found: Spread, reserve: float = 1.0) -> tuple[float, float]:
    """The 95 % interval of values without bounds: what Student's t and Hall's interval cover.

    Hall (1992) corrects t for the skewness by a cubic transformation. It covers the mean of skewed
    values, and t that of values whose skewness is but chance. reserve: times both half-widths.
    """
    width = reserve * t_quantile(found.n - 1) / math.sqrt(found.n)
    ends = [-width, width]
    if abs(found.skewness) > FLAT:
        ends += [hall(-width, found), hall(width, found)]
    return found.value - found.deviation * max(ends), found.value - found.deviation * min(ends)


def weighted_interval(found: Spread, items: float) -> tuple[float, float]:
    """The 95 % interval of a ratio of sums over unequal items whose values are never negative.

    items: how many equal items tell as much (Kish 1965), more than 1. They give t its degrees of
    freedom, and the upper end is at least that of the logarithm's interval: few long texts carry
    the figure, and a longer tail than they show is likely.
    """
    quantile = math.sqrt(items / (items - 1)) * t_quantile(max(1, round(items - 1)))
    low, high = mean_interval(found, quantile / t_quantile(found.n - 1))
    if found.value <= 0:
        return low, high
    width = quantile * found.deviation / math.sqrt(found.n)
    return low, max(high, found.value * math.exp(min(width / found.value, LARGEST)))


def hall(end: float, found: Spread) -> float:
    """The end of an interval of t/√n, corrected for the skewness."""
    shifted = end - found.skewness / (6 * found.n)
    inner = 1 + found.skewness * shifted
    return 3 / found.skewness * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def bounded_interval(found: Spread, at_ends: float, weight: float = 1.0) -> tuple[float, float]:
    """The 95 % interval of values between 0 and 1, as of a share of an effective number of items.

    at_ends: the share of items whose value is 0 or 1; where it is 1, this is a share's interval.
    weight: the mean number of counted things in an item, such as tokens. A variance below a
    share's counts as more items (Korn and Graubard 1998). Half an item moves the variance towards a
    share's, or two tokens towards that of groups of four: few items estimate it if nearly all
    answers are right.
    """
    n, value = found.n, min(max(found.value, 0.0), 1.0)
    most = n * weight * value * (1 - value)
    if most + at_ends == 0:
        return value, value
    variance = (n - 1) * weight**2 * found.deviation**2
    together = min(weight, TOGETHER)
    added = ADDED * at_ends * together
    effect = (variance + added * together) / (most + added)
    items = n * weight / min(max(effect, 1e-6), weight)
    quantile = Z if at_ends == 1 else t_quantile(n - 1)
    low, high = arcsine_interval(value, items, quantile)
    return min(low, value), max(high, value)


def bounded_difference(found: Spread, tied: float) -> tuple[float, float]:
    """The 95 % interval of a difference of values between 0 and 1.

    tied: the share of items on which both are equal. Half as much of an item that is 1 higher in
    one is added, and of an item that is 1 lower: as with shares, a difference that no item shows is
    still possible.
    """
    added = ADDED * tied
    n, total = found.n, found.n + 2 * added
    middle = found.value * n / total
    squares = (n - 1) * found.deviation**2 + n * found.value**2 + 2 * added
    deviation = math.sqrt(max(0.0, squares / total - middle**2) * total / (total - 1))
    # what is added is symmetric: the third moment stays
    skewness = found.skewness * (found.deviation / deviation) ** 3 if deviation else 0.0
    low, high = mean_interval(Spread(middle, n, deviation, skewness), RESERVE)
    return max(-1.0, min(low, found.value)), min(1.0, max(high, found.value))
