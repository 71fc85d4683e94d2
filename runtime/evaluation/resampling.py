"""The bootstrap over items: figures of resamples, and intervals from these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from runtime.evaluation.exact_tests import t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.evaluation.metric import Floats

DRAWN_NBYTES = 1 << 20  # bytes of numbers at once: they fit a core's cache; more are slower
WEIGHTS_NBYTES = 1 << 20  # bytes of resamples multiplied at once: they fit a core's cache
KEPT_NBYTES = 32 << 20  # bytes of draws kept for the next metric, a byte for each item
MOST_DRAWS = 200_000_000  # items drawn in all, a second or so
RESERVE = 1.1  # factor of the half-width: 3 % of equal models are found different instead of 5 %
LEAST_RESAMPLES = 1_000  # for data so large that more would be too many draws


def resample_count(n: int, resamples: int) -> int:
    """How many resamples of n items are drawn: fewer than asked for if that would take long."""
    return min(resamples, max(LEAST_RESAMPLES, MOST_DRAWS // n))


def resampled(
    figure: Callable[[Floats], Floats], statistics: Floats, seed: int, resamples: int
) -> Floats:
    """The figure of each resample of items, drawn with replacement; shape (resamples,).

    figure: of sums, shape (..., k) to (...). statistics: (n, k), n > 0. For more than 20,000 items,
    fewer than 10,000 resamples are drawn, down to 1,000.
    """
    import numpy as np

    n, k = statistics.shape
    resamples = resample_count(n, resamples)
    found = np.empty(resamples)
    count = min(resamples, max(1, WEIGHTS_NBYTES // (8 * max(n, k))))
    begin = 0
    for counts in draws(n, seed, resamples, count):
        end = begin + len(counts)
        found[begin:end] = figure(counts @ statistics)
        begin = end
    return found


def draws(n: int, seed: int, resamples: int, count: int) -> Iterator[Floats]:
    """How often each resample has each item, `count` resamples at a time: shape (count, n)."""
    import numpy as np

    if n * resamples > KEPT_NBYTES:
        random = np.random.default_rng(seed)
        for begin in range(0, resamples, count):
            yield drawn(random, np.empty((min(count, resamples - begin), n)))
        return
    kept = kept_draws(n, seed, resamples)
    for begin in range(0, resamples, count):
        yield kept[begin : begin + count].astype(np.float64)


@lru_cache(maxsize=1)
def kept_draws(n: int, seed: int, resamples: int) -> NDArray[np.uint8]:
    """The draws that all metrics over the same items share: shape (resamples, n)."""
    import numpy as np

    return drawn(np.random.default_rng(seed), np.empty((resamples, n), np.uint8))


def drawn(random: np.random.Generator, found: NDArray[Any]) -> NDArray[Any]:
    """Fill in how often each resample has each item, 255 times at most: shape (count, n)."""
    import numpy as np

    n = found.shape[1]
    rows = max(1, DRAWN_NBYTES // (8 * n))
    for start in range(0, len(found), rows):
        part = found[start : start + rows]
        places = random.integers(0, n, size=part.shape)
        places += n * np.arange(len(part))[:, None]
        counts = np.bincount(places.reshape(-1), minlength=part.size)
        part[:] = np.minimum(counts, 255).reshape(part.shape)
    return found


def bca_interval(
    figure: Callable[[Floats], Floats], statistics: Floats, seed: int, resamples: int
) -> tuple[float, float]:
    """The 95 % interval by the bias-corrected and accelerated bootstrap (Efron 1987).

    statistics: (n, k), n > 0. It is widened from the normal quantile to Student's t, because
    the bootstrap's intervals are too short for few items (Hesterberg 2015).
    """
    import numpy as np

    n, _ = statistics.shape
    value = float(figure(statistics.sum(0)))
    if n == 1:
        return value, value
    found = np.sort(resampled(figure, statistics, seed, resamples))
    below = (np.sum(found < value) + np.sum(found == value) / 2) / len(found)
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(float(below), 1 / len(found)), 1 - 1 / len(found)))
    acceleration = _acceleration(figure, statistics)
    wide = t_quantile(n - 1) * math.sqrt(n / (n - 1))
    low, high = (
        float(np.quantile(found, _level(bias + sign * wide, bias, acceleration)))
        for sign in (-1, 1)
    )
    return min(low, value), max(high, value)


def _level(shifted: float, bias: float, acceleration: float) -> float:
    """The share of resamples below the interval's end."""
    below = 1 - acceleration * shifted
    if below <= 0:  # the correction's pole: the end is beyond all resamples
        return float(shifted > 0)
    return NormalDist().cdf(bias + shifted / below)


def _acceleration(figure: Callable[[Floats], Floats], statistics: Floats) -> float:
    """How the figure's spread grows with the figure, by leaving out one item at a time.

    statistics: (n, k).
    """
    import numpy as np

    left = figure(statistics.sum(0) - statistics)  # (n,)
    away = left.mean() - left
    spread = float(np.sum(away**2))
    return float(np.sum(away**3)) / (6 * spread**1.5) if spread > 0 else 0.0


def t_interval(
    figure: Callable[[Floats], Floats], statistics: Floats, seed: int, resamples: int
) -> tuple[float, float]:
    """The 95 % interval by Student's t and the bootstrap's standard error, with a reserve.

    statistics: (n, k), n > 0. It is for differences of two models: unlike quantiles of the
    bootstrap, it rarely finds a false difference when the models answer most items equally.
    """
    import numpy as np

    n, _ = statistics.shape
    value = float(figure(statistics.sum(0)))
    if n == 1:
        return value, value
    found = resampled(figure, statistics, seed, resamples)
    half = RESERVE * t_quantile(n - 1) * math.sqrt(n / (n - 1)) * float(np.std(found))
    return value - half, value + half
