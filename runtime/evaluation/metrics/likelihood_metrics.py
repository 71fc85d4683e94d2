"""Metrics of how likely a model finds the right answer, and the rejected one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric, ratio, row
from runtime.evaluation.outcome import Likelihoods, Outcome

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

LARGEST_LOSS = 700.0  # nats: exp of 710 exceeds a double


def loss_sums(_item: Item, outcome: Outcome) -> Floats | None:
    """The reference's nats and its number of tokens; shape (2,)."""
    found = outcome.reference
    return None if found is None or not found.tokens else row(-found.logprob, found.tokens)


def perplexity_of(sums: Floats) -> Floats:
    """The exponential of the mean loss per token: shape (..., 2) to (...)."""
    return bounded_exp(ratio(sums))


def bounded_exp(loss: Floats) -> Floats:
    """The exponential of losses: shape (n,) to (n,)."""
    import numpy as np

    return np.exp(np.minimum(loss, LARGEST_LOSS))


def bits_and_bytes(item: Item, outcome: Outcome) -> Floats | None:
    """The reference's bits and its bytes in UTF-8; shape (2,).

    Unlike the loss it is comparable between models with different tokenizers.
    """
    found = outcome.reference
    size = len(item.references[0].encode(errors="replace")) if item.references else 0
    return None if found is None or not size else row(-found.logprob / math.log(2), size)


def _pair(outcome: Outcome) -> tuple[Likelihoods, Likelihoods] | None:
    """The chosen and the rejected answer's likelihoods, if both can be compared."""
    chosen, rejected = outcome.reference, outcome.rejected
    if chosen is None or rejected is None or not chosen.tokens or not rejected.tokens:
        return None
    is_usable = math.isfinite(chosen.logprob) and math.isfinite(rejected.logprob)
    return (chosen, rejected) if is_usable else None


def preference(_item: Item, outcome: Outcome) -> float | None:
    """1.0 if the chosen answer is likelier than the rejected one, else 0.0."""
    pair = _pair(outcome)
    return None if pair is None else float(pair[0].logprob > pair[1].logprob)


def preference_norm(_item: Item, outcome: Outcome) -> float | None:
    """1.0 if the chosen answer's tokens are likelier on average than the rejected one's."""
    pair = _pair(outcome)
    if pair is None:
        return None
    chosen, rejected = pair
    return float(chosen.logprob / chosen.tokens > rejected.logprob / rejected.tokens)


def margin(_item: Item, outcome: Outcome) -> float | None:
    """The chosen answer's log-likelihood less the rejected one's, in nats."""
    pair = _pair(outcome)
    return None if pair is None else pair[0].logprob - pair[1].logprob


def agreement(ours: Outcome, theirs: Outcome) -> float | None:
    """The share of the reference's places at which both models have the same likeliest token.

    None if a model has no likeliest tokens, or if their numbers differ, as with two tokenizers.
    """
    if ours.reference is None or theirs.reference is None:
        return None
    one, other = ours.reference.greedy, theirs.reference.greedy
    if not one or len(one) != len(other):
        return None
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def agreement_with(others: Mapping[str, Outcome]) -> Metric:
    """The metric `agreement` with another model, whose outcomes are given by the items' ids.

    It is the share of all tokens, so that long references count more.
    """

    def statistics(item: Item, outcome: Outcome) -> Floats | None:
        other = others.get(item.id)
        found = None if other is None else agreement(outcome, other)
        if found is None or outcome.reference is None:
            return None
        places = len(outcome.reference.greedy)
        return row(found * places, places)

    return Metric("agreement", "top-1 agreement", "reference", statistics, ratio, is_bounded=True)


LIKELIHOOD_METRICS: tuple[Metric, ...] = (
    Metric("loss", "loss", "reference", loss_sums, ratio, higher_is_better=False, unit="nats"),
    Metric(
        "perplexity",
        "perplexity",
        "reference",
        loss_sums,
        perplexity_of,
        higher_is_better=False,
        of_ratio=bounded_exp,
        judged_by="loss",
    ),
    Metric(
        "bits_per_byte",
        "bits per byte",
        "reference",
        bits_and_bytes,
        ratio,
        higher_is_better=False,
        unit="bits",
    ),
    mean_metric("preference", "preference", "rejected", preference, is_binary=True),
    mean_metric(
        "preference_norm", "preference per token", "rejected", preference_norm, is_binary=True
    ),
    mean_metric("margin", "margin", "rejected", margin, unit="nats"),
)
