"""Likelihoods of texts after several contexts in one request.

They are computed together, in fewer steps of the model; shared beginnings are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.encoder_decoder.model import Flag
from runtime.encoder_decoder.openai import Fields, Json, RefusedError, wrong
from runtime.scoring.likelihood_request import (
    EndingCuts,
    LikelihoodRequest,
    answer_likelihoods,
    read_likelihood_request,
)
from runtime.scoring.score_request import Engine, scales_of

ITEMS, ANSWERS = "items", "answers"
"""The names of the lists in the request and in its answer."""


@dataclass(frozen=True, slots=True)
class LikelihoodBatch:
    """The requests for all contexts, with the same adapters' scales."""

    items: Sequence[LikelihoodRequest | RefusedError]
    """An item that cannot be answered is refused alone."""
    scales: Sequence[float]


def read_likelihood_batch(fields: Fields, engine: Engine) -> LikelihoodBatch:
    """Read a request's body. Raises RefusedError."""
    if not fields.body.get(ITEMS):
        raise wrong(f"`{ITEMS}` must be a list of objects with `context` and `endings`")
    cuts = EndingCuts(engine.vocabulary)
    found: list[LikelihoodRequest | RefusedError] = []
    for item in fields.objects(ITEMS):
        try:
            found.append(read_likelihood_request(Fields(item), engine, cuts))
        except RefusedError as error:
            found.append(error)
    return LikelihoodBatch(found, scales_of(fields))


def answer_likelihood_batch(engine: Engine, batch: LikelihoodBatch, stop: Flag) -> Json:
    """The answer to a batch. Raises StoppedError, EngineError and UnsupportedError."""
    read = [item for item in batch.items if isinstance(item, LikelihoodRequest)]
    pairs = [pair for item in read for pair in item.pairs]
    answer = answer_likelihoods(engine, LikelihoodRequest(pairs, batch.scales), stop)
    left = iter(answer["likelihoods"])
    return {
        ANSWERS: [
            {"likelihoods": [next(left) for _ in item.pairs]}
            if isinstance(item, LikelihoodRequest)
            else {"error": item.error}
            for item in batch.items
        ]
    }
