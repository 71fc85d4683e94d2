"""Metrics of how far a model's distributions are from those of the model compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import ratio, row
from runtime.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

LEAST, MOST = 1e-6, 50.0
"""In nats: between them, divergences are counted by classes of equal width in the logarithm."""
CLASSES = 128  # each 15 % above the one before
QUANTILE = 0.99  # as llama-perplexity gives it


def divergence_sums(_item: Item, outcome: Outcome) -> Floats | None:
    """The divergences' sum and their number; shape (2,)."""
    found = outcome.divergences
    return row(math.fsum(found), len(found)) if found else None


def divergence_counts(_item: Item, outcome: Outcome) -> Floats | None:
    """How many divergences are in each class; shape (CLASSES,)."""
    import numpy as np

    found = np.array(outcome.divergences)
    if not len(found) or not np.isfinite(found).all():
        return None
    scaled = np.log(np.clip(found, LEAST, MOST) / LEAST) / math.log(MOST / LEAST)
    classes = np.minimum((scaled * CLASSES).astype(int), CLASSES - 1)
    return np.bincount(classes, minlength=CLASSES).astype(np.float64)


def quantile_of(counts: Floats) -> Floats:
    """The 99th percentile, interpolated within its class: (..., CLASSES) to (...)."""
    import numpy as np

    total = counts.sum(-1)
    sums = np.cumsum(counts, axis=-1)
    wanted = QUANTILE * total
    place = np.minimum((sums < wanted[..., None]).sum(-1), CLASSES - 1)
    inside = np.take_along_axis(counts, place[..., None], -1)[..., 0]
    below = np.take_along_axis(sums, place[..., None], -1)[..., 0] - inside
    part = (wanted - below) / np.where(inside > 0, inside, 1)
    found = LEAST * np.exp((place + part) / CLASSES * math.log(MOST / LEAST))
    return np.where(total > 0, found, 0.0)


DIVERGENCE_METRICS: tuple[Metric, ...] = (
    Metric(
        "kl",
        "KL divergence",
        "divergences",
        divergence_sums,
        ratio,
        higher_is_better=False,
        unit="nats",
    ),
    Metric(
        "kl_p99",
        "KL, 99th percentile",
        "divergences",
        divergence_counts,
        quantile_of,
        higher_is_better=False,
        unit="nats",
    ),
)
