"""Scores of a GGUF in F32 are those of transformers with peft's adapters beside it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from runtime.scoring.forward import BATCH
from runtime.scoring.scorer import Scorer
from tests.runtime.scoring.conftest import drawn, families

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

CLOSE = 1e-4  # nats a token
SCALES = [(0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.0, -0.7), (1.0, 0.3)]


@pytest.fixture(scope="module")
def scorer(scored, toolchain) -> Iterator[Scorer]:
    with Scorer(scored.gguf, scored.adapters, threads=2, toolchain=toolchain) as found:
        yield found


@pytest.mark.parametrize("scales", SCALES)
def test_every_token_is_as_likely_as_in_the_unmerged_forward(scored, scorer, scales):
    texts = families(1)

    found = scorer.score(texts, scales=scales)

    for text, scores in zip(texts, found, strict=True):
        assert np.isnan(scores.logprobs[0])
        assert scores.logprobs.shape == (len(text),)
        if len(text) > 1:
            expected = scored.reference.tokens(text, scales)
            np.testing.assert_allclose(scores.logprobs[1:], expected, rtol=0, atol=CLOSE)


def test_adapters_at_other_scales_leave_nothing_behind(scored, scorer):
    text = drawn(3, 60)[0]
    order = random.Random(4).choices(SCALES, k=20)
    alone = {scales: scorer.score([text], scales=scales)[0].logprobs for scales in SCALES}

    for scales in order:
        again = scorer.score([text], scales=scales)[0].logprobs
        np.testing.assert_array_equal(again, alone[scales])
    apart = min(
        np.nanmax(np.abs(alone[one] - alone[other]))
        for one, other in itertools.combinations(SCALES, 2)
    )
    assert apart > 100 * CLOSE  # or the wrong adapter's values would pass


def test_a_merged_model_scores_as_its_adapter_beside_the_base(scored, toolchain):
    texts = families(5)
    with Scorer(scored.merged, threads=2, toolchain=toolchain) as scorer:
        found = scorer.score(texts)

    for text, scores in zip(texts, found, strict=True):
        if len(text) > 1:
            expected = scored.reference.tokens(text, (1.0, 0.0))
            np.testing.assert_allclose(scores.logprobs[1:], expected, rtol=0, atol=CLOSE)


def test_scores_do_not_hang_on_their_neighbours(scorer):
    texts = families(7)
    together = scorer.score(texts, top=3)

    for text, beside in zip(texts, together, strict=True):
        alone = scorer.score([text], top=3)[0]
        np.testing.assert_allclose(beside.logprobs, alone.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(beside.top_logprobs, alone.top_logprobs, rtol=0, atol=1e-5)


def test_the_likeliest_tokens_are_the_references(scored, scorer):
    text = drawn(9, 40)[0]
    expected = scored.reference.logprobs(text, (1.0, 0.0))

    found = scorer.score([text], scales=(1.0, 0.0), top=4)[0]

    order = np.argsort(-expected, axis=1)[:, :4]
    np.testing.assert_array_equal(found.top_ids[1:-1], order[:-1])
    values = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(found.top_logprobs[1:-1], values[:-1], rtol=0, atol=CLOSE)


def test_a_continuations_likelihood_is_the_sum_over_its_tokens(scored, scorer):
    context, *ends = drawn(11, 130, 1, 2, 5)
    likeliest = [int(scored.reference.logprobs(context, (0.0, 0.0))[-1].argmax())]
    ends.append(likeliest)

    found = scorer.likelihoods([(context, end) for end in ends])

    for end, one in zip(ends, found, strict=True):
        values = scored.reference.tokens(context + end, (0.0, 0.0))[-len(end) :]
        np.testing.assert_allclose(one.tokens, values, rtol=0, atol=CLOSE)
        assert one.logprob == sum(one.tokens)
    assert [one.is_greedy for one in found] == [False, False, False, True]


def test_a_shared_beginning_is_computed_once(scorer):
    engine = scorer.causal("test")
    context, *ends = drawn(13, 200, 4, 4, 4, 4)
    pairs = [(context, end) for end in ends]
    before = engine.steps

    scorer.likelihoods(pairs)

    assert engine.steps - before == 2  # the context, then all the ends


def test_the_last_token_is_not_computed_for_nobody(scorer):
    engine = scorer.causal("test")
    text = drawn(19, BATCH + 1)[0]
    before = engine.steps

    scorer.score([text])

    assert engine.steps - before == 1


def test_places_before_the_start_are_left_out(scorer):
    texts = families(17)

    whole, part = scorer.score(texts), scorer.score(texts, start=100)

    for text, one, other in zip(texts, whole, part, strict=True):
        np.testing.assert_allclose(other.logprobs[100:], one.logprobs[100:], rtol=0, atol=1e-5)
        assert np.isnan(other.logprobs[: min(60, len(text))]).all()


def test_more_texts_than_the_cache_holds_are_scored_in_turns(scored, scorer):
    texts = drawn(15, *[700] * 3, *[3] * 150)
    found = scorer.score(texts)

    for place in (0, 2, 152):
        expected = scored.reference.tokens(texts[place], (0.0, 0.0))
        np.testing.assert_allclose(found[place].logprobs[1:], expected, rtol=0, atol=CLOSE)
