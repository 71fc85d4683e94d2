"""Figures of models with their intervals, and whether two models differ on the same items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from exporter.core.errors import InputError
from runtime.evaluation.exact_tests import share_difference, share_interval, sign_test
from runtime.evaluation.item import Item
from runtime.evaluation.mean_intervals import (
    RESERVE,
    bounded_difference,
    bounded_interval,
    mean_interval,
    spread,
    weighted_interval,
)
from runtime.evaluation.metric import Difference, Interval, Metric, Verdict
from runtime.evaluation.metrics.figures import ratio
from runtime.evaluation.outcome import Outcome
from runtime.evaluation.resampling import bca_interval, t_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.evaluation.metric import Floats

RESAMPLES = 10_000  # the interval's ends then vary by about 1 % of its width from seed to seed
LEAST_ITEMS = 5  # for a verdict
EQUAL = 0.99  # of n: if the effective number of items is above, all count as equal
SIGNIFICANT = 0.05  # as of a 95 % interval
SAME = 1e-9  # of a value: rounding, no difference


def statistics_of(metric: Metric, items: Sequence[Item], outcomes: Sequence[Outcome]) -> Floats:
    """The items' statistics, shape (n, k); a row of NaN for an item without them.

    Raises InputError if k varies, as with labels that are not the same for all items.
    """
    pairs = zip(items, outcomes, strict=True)
    return stacked(metric, [item_statistics(metric, item, outcome) for item, outcome in pairs])


def item_statistics(metric: Metric, item: Item, outcome: Outcome) -> Floats | None:
    """One item's statistics, shape (k,); None for an item without them or without an outcome."""
    return None if outcome.refusal else metric.statistics(item, outcome)


def stacked(metric: Metric, rows: Sequence[Floats | None]) -> Floats:
    """Items' statistics, each of shape (k,), as one array, shape (n, k); NaN for None.

    Raises InputError if k varies, as with labels that are not the same for all items.
    """
    import numpy as np

    sizes = {len(row) for row in rows if row is not None}
    if len(sizes) > 1:
        raise InputError(
            f"{metric.name} cannot be computed: the labels are not the same for all items",
            hint=f"leave it out: --metric -{metric.name}",
        )
    missing = np.full(max(sizes, default=1), np.nan)
    found = [missing if row is None else row for row in rows]
    return np.stack(found) if found else np.empty((0, 1))


def _has(statistics: Floats) -> NDArray[np.bool_]:
    """Whether each item has statistics: shape (n, k) to (n,)."""
    import numpy as np

    return np.asarray(np.isfinite(statistics).all(-1))


def item_values(metric: Metric, statistics: Floats) -> Floats:
    """Each item's own value, NaN for one without: shape (n, k) to (n,)."""
    import numpy as np

    has = _has(statistics)
    found = np.full(len(statistics), np.nan)
    if has.any():
        found[has] = metric.combine(statistics[has])
    return found


def interval(metric: Metric, statistics: Floats, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The figure with its 95 % interval; all are 0 without an item.

    statistics: (n, k); rows with NaN are left out. For ratios of two sums, such as means, a formula
    gives the interval; for others, the BCa bootstrap.
    """
    rows = statistics[_has(statistics)]
    n = len(rows)
    if n == 0:
        return Interval(0.0, 0.0, 0.0, 0)
    value = float(metric.combine(rows.sum(0)))
    if metric.is_binary:
        low, high = share_interval(value * n, n)
    elif (metric.combine is ratio or metric.of_ratio) and n > 1:
        low, high = _ratio_interval(metric, rows)
    else:
        low, high = bca_interval(metric.combine, rows, seed, resamples)
    return Interval(value, low, high, n)


def _ratio_interval(metric: Metric, rows: Floats) -> tuple[float, float]:
    """The interval of a ratio of two sums, or of a rising function of it. rows: (n, 2), n > 1."""
    import numpy as np

    found = spread(ratio, rows)
    if metric.is_bounded:
        values = ratio(rows)
        at_ends = float(np.mean((values == 0) | (values == 1)))
        return bounded_interval(found, at_ends, float(rows[:, 1].mean()))
    weights = rows[:, 1]
    items = float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0
    if 1 < items < EQUAL * len(rows) and bool((rows >= 0).all()):
        low, high = weighted_interval(found, items)
    else:
        low, high = mean_interval(found)
    if metric.of_ratio is not None:
        low, high = map(float, metric.of_ratio(np.array([low, high])))
    return low, high


def difference(
    metric: Metric, ours: Floats, theirs: Floats, seed: int, resamples: int = RESAMPLES
) -> Difference:
    """How our model's figure differs from theirs on the items that both have statistics of.

    ours, theirs: (n, k), the same items in the same order; rows with NaN are left out. McNemar's
    exact test decides for a binary metric, for others the 95 % interval of the difference.
    """
    import numpy as np

    both = _has(ours) & _has(theirs)
    ours, theirs = ours[both], theirs[both]
    n, k = len(ours), ours.shape[-1]
    if n == 0:
        return Difference(
            0.0, 0.0, 0.0, 0, None, "no difference shown", "too few items to tell: n = 0"
        )
    value = float(metric.combine(ours.sum(0)) - metric.combine(theirs.sum(0)))
    wins, losses, ties = win_loss_tie(metric, ours, theirs)
    p = None
    if metric.is_binary:
        change = item_values(metric, ours) - item_values(metric, theirs)
        more, less = int(np.sum(change > 0)), int(np.sum(change < 0))
        p = sign_test(more, less)
        low, high = share_difference(more, less, n)
        differs = p <= SIGNIFICANT
    else:
        figure = _less(metric, k)
        pairs = np.concatenate([ours, theirs], axis=1)
        if metric.combine is not ratio or n == 1:
            low, high = t_interval(figure, pairs, seed, resamples)
        elif metric.is_bounded:
            is_tied = np.isclose(ratio(ours), ratio(theirs), rtol=SAME, atol=SAME)
            low, high = bounded_difference(spread(figure, pairs), float(np.mean(is_tied)))
        else:
            low, high = mean_interval(spread(figure, pairs), RESERVE)
        differs = (low > 0 or high < 0) and not np.isclose(value, 0, atol=SAME)
    verdict, words = _verdict(metric, (value, low, high), n, differs=differs)
    return Difference(value, low, high, n, p, verdict, words, wins, losses, ties)


def _less(metric: Metric, k: int) -> Callable[[Floats], Floats]:
    """Our figure less theirs, of sums side by side: shape (..., 2k) to (...)."""
    return lambda sums: metric.combine(sums[..., :k]) - metric.combine(sums[..., k:])


def _verdict(
    metric: Metric, ends: tuple[float, float, float], n: int, *, differs: bool
) -> tuple[Verdict, str]:
    """The verdict, and a sentence with the difference and its interval."""
    if n < LEAST_ITEMS:
        return "no difference shown", f"too few items to tell: n = {n}"
    if not differs:
        return "no difference shown", f"no difference shown at n = {n}"
    is_higher = ends[0] > 0
    value, low, high = (end if is_higher else -end for end in ends)
    low, high = min(low, high), max(low, high)
    unit = f" {metric.unit}" if metric.unit else ""
    amount = f"{value:.3g}{unit} ({low:.3g} to {high:.3g}) at n = {n}"
    if metric.higher_is_better is None:
        return "differs", f"{'higher' if is_higher else 'lower'} by {amount}"
    is_better = is_higher == metric.higher_is_better
    return ("better", f"better by {amount}") if is_better else ("worse", f"worse by {amount}")


def win_loss_tie(metric: Metric, ours: Floats, theirs: Floats) -> tuple[int, int, int]:
    """The numbers of items on which our model is better, worse and as good.

    ours, theirs: (n, k). Items without statistics in one of them are left out. With a metric where
    neither higher nor lower is better, all items are ties.
    """
    verdicts = item_verdicts(metric, ours, theirs)
    return verdicts.count("win"), verdicts.count("loss"), verdicts.count("tie")


def item_verdicts(metric: Metric, ours: Floats, theirs: Floats) -> list[str]:
    """For each item `win`, `loss` or `tie`; empty without statistics. ours, theirs: (n, k)."""
    import numpy as np

    ours, theirs = item_values(metric, ours), item_values(metric, theirs)
    is_same = np.isclose(ours, theirs, rtol=SAME, atol=SAME)
    is_higher = ours > theirs
    if metric.higher_is_better is None:
        is_same = np.ones_like(is_same)
    is_win = is_higher if metric.higher_is_better else ~is_higher
    words = np.where(is_same, "tie", np.where(is_win, "win", "loss"))
    return [str(word) for word in np.where(np.isnan(ours - theirs), "", words)]
