"""A metric: how the outcomes of items become one figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtime.evaluation.item import Item
from runtime.evaluation.outcome import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Needs = Literal["answer", "reference", "rejected", "labels", "divergences"]
"""The part of an Outcome that a metric is computed from."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that is computed from sums over items, so that it can be resampled.

    A mean has the statistics (value, 1), and combines to their ratio; BLEU's are counts of n-grams
    and lengths.
    """

    name: str
    """As the user types it, such as `exact_match`."""
    title: str
    """As tables and plots show it, such as `exact match`."""
    needs: Needs
    statistics: Callable[[Item, Outcome], Floats | None]
    """An item's statistics, shape (k,); None for an item without them, which is left out."""
    combine: Callable[[Floats], Floats]
    """The figure of summed statistics: shape (..., k) to (...)."""
    higher_is_better: bool | None = True
    """None where neither is better, such as an answer's length."""
    unit: str = ""
    """Shown behind the figure, such as `%` (of a figure that is already times 100) or `nats`."""
    judged_by: str = ""
    """A metric that rises and falls with this one: if it is computed, two models are compared by
    it alone."""
    is_bounded: bool = False
    """Whether an item's value is between 0 and 1, and the figure is the ratio of two sums."""
    of_ratio: Callable[[Floats], Floats] | None = None
    """The function, if the figure is a rising function of the ratio of two sums; of any shape
    (...)."""
    is_binary: bool = False
    """Whether an item's value is 0 or 1: two models are then compared by McNemar's test."""


Verdict = Literal["better", "worse", "differs", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """The number of items with statistics."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model differs from another on the same items."""

    value: float
    """The model's figure less the other's."""
    low: float
    high: float
    n: int
    """The number of items for which both have statistics."""
    p: float | None
    """McNemar's exact p for binary metrics; None for others."""
    verdict: Verdict
    words: str
    """One sentence for the reader, such as `no difference shown at n = 50`."""
    wins: int = 0
    """Items on which the model is better than the other."""
    losses: int = 0
    ties: int = 0
