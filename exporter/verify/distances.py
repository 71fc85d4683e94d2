"""Distances between the predictions of two models over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Logits = Iterable["np.ndarray[Any, Any]"]
"""(tokens, vocabulary) of each chunk."""
NEARLY_ALL = 0.9  # share of the tokens


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance between two models' predictions over the same tokens."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence from the reference, in nats."""
    kl_max: float
    logit: float
    """Largest difference of a logit."""
    logit_size: float
    """Largest logit of the reference."""
    off: float
    """The 0.9 quantile of the tokens' deviations: root mean square difference of the logits,
    relative to the spread of the reference's.
    """
    top1: float
    """Share of tokens with the same most likely successor."""
    perplexity: float
    reference_perplexity: float


class TokenDistance(NamedTuple):
    """Distance between two models' predictions of one token's successor."""

    kl: float
    """Kullback-Leibler divergence from the reference, in nats."""
    logit: float
    """Largest difference of a logit."""
    logit_size: float
    """Largest logit of the reference, as an absolute value."""
    off: float
    """Root mean square difference of the logits, relative to the spread of the reference's."""
    top1: bool
    """Whether the most likely successor is the same."""
    loss: float
    """Negative log-probability of the successor in the text, by the other model, in nats."""
    reference_loss: float
    """The same by the reference."""


def compare(reference: Logits, other: Logits, chunks: Sequence[Sequence[int]]) -> Distance:
    """Distance over all tokens with a successor in their chunk, from logits (tokens,
    vocabulary).
    """
    import numpy as np

    found = [
        token_distance(*rows)
        for one, two, chunk in zip(reference, other, chunks, strict=False)
        for rows in zip(one, two, chunk[1:], strict=False)
    ]
    columns = (np.array(column) for column in zip(*found, strict=True))
    kl, logit, logit_size, off, top1, loss, reference_loss = columns
    return Distance(
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        logit=float(logit.max()),
        logit_size=float(logit_size.max()),
        off=float(np.quantile(off, NEARLY_ALL)),
        top1=float(top1.mean()),
        perplexity=math.exp(loss.mean()),
        reference_perplexity=math.exp(reference_loss.mean()),
    )


def token_distance(
    reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any], successor: int
) -> TokenDistance:
    """Distance between logits (vocabulary,), of which llama.cpp may have more, as it pads."""
    import numpy as np

    width = min(len(reference), len(other))
    a, b = (values[:width].astype(np.float64) for values in (reference, other))
    gap = a - b
    best_a, best_b = int(a.argmax()), int(b.argmax())
    odds = np.exp(a - a[best_a])  # of each token against the most likely one
    log_sum_a = float(a[best_a] + np.log(odds.sum()))
    log_sum_b = float(b[best_b] + np.log(np.exp(b - b[best_b]).sum()))
    mean_gap = float(odds @ gap) / float(odds.sum())
    length = float(np.linalg.norm(a - a.mean()))  # no prediction depends on the mean
    return TokenDistance(
        kl=mean_gap - log_sum_a + log_sum_b,
        logit=float(np.abs(gap).max()),
        logit_size=float(np.abs(a).max()),
        off=float(np.linalg.norm(gap - gap.mean())) / (length or 1.0),
        top1=best_a == best_b,
        loss=log_sum_b - float(b[successor]),
        reference_loss=log_sum_a - float(a[successor]),
    )
