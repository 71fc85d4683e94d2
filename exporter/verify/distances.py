"""Distances between the predictions of two models over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


def compare(reference: Logits, other: Logits, chunks: Sequence[Sequence[int]]) -> Distance:
    """Distance over all tokens with a successor in their chunk, from logits (tokens,
    vocabulary).
    """
    import numpy as np

    divergences, agreeing, losses = [], [], []
    largest = size = 0.0
    parts = []
    for one, two, chunk in zip(reference, other, chunks, strict=False):
        width = min(one.shape[1], two.shape[1])  # llama.cpp may pad a vocabulary
        a, b = (values[:-1, :width].astype(np.float64) for values in (one, two))
        log_a, log_b = log_softmax(a), log_softmax(b)
        divergences.append((np.exp(log_a) * (log_a - log_b)).sum(axis=1))
        agreeing.append(a.argmax(axis=1) == b.argmax(axis=1))
        places = np.arange(len(a)), np.array(chunk[1:])
        losses.append((-log_a[places], -log_b[places]))
        largest = max(largest, float(np.abs(a - b).max()))
        size = max(size, float(np.abs(a).max()))
        parts.append(np.linalg.norm(centred(a - b), axis=1) / spread(a))
    kl = np.concatenate(divergences)
    own, others = (np.concatenate(part) for part in zip(*losses, strict=True))
    return Distance(
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        logit=largest,
        logit_size=size,
        off=float(np.quantile(np.concatenate(parts), NEARLY_ALL)),
        top1=float(np.concatenate(agreeing).mean()),
        perplexity=math.exp(others.mean()),
        reference_perplexity=math.exp(own.mean()),
    )


def centred(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits (tokens, vocabulary) minus their mean, which no prediction depends on."""
    centre: np.ndarray[Any, Any] = logits - logits.mean(axis=1, keepdims=True)
    return centre


def spread(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Distance of each token's logits (tokens, vocabulary) from their mean, (tokens,), never 0."""
    import numpy as np

    lengths: np.ndarray[Any, Any] = np.linalg.norm(centred(logits), axis=1)
    return np.where(lengths > 0, lengths, 1.0)


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities of logits (tokens, vocabulary), along the vocabulary."""
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
