"""Metrics that are the ratio of two sums over items, such as a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric, Needs
from runtime.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats


def row(*values: float) -> Floats | None:
    """An item's statistics as an array of shape (k,); None if one of them is not finite."""
    import numpy as np

    return np.array(values, np.float64) if all(map(math.isfinite, values)) else None


def ratio(sums: Floats) -> Floats:
    """The first sum divided by the second, 0 where that is 0: shape (..., 2) to (...)."""
    import numpy as np

    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def mean_metric(
    name: str,
    title: str,
    needs: Needs,
    value: Callable[[Item, Outcome], float | None],
    **settings: object,
) -> Metric:
    """The mean of a value that each item has; an item with None is left out.

    settings: fields of Metric, such as `unit`.
    """

    def statistics(item: Item, outcome: Outcome) -> Floats | None:
        found = value(item, outcome)
        return None if found is None else row(float(found), 1.0)

    return Metric(name, title, needs, statistics, ratio, **settings)  # type: ignore[arg-type]
