"""Guesses change no answer, with adapters and each option: a part of the committed comparison."""

from __future__ import annotations

import pytest

from benchmarks.speculation_equal import OPTIONS, TALKS, VOICES, Models, differences, kinds_for
from tests.support.near_ties import CLOSE

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.slow]
COUNT = len(VOICES) * len(OPTIONS) * len(TALKS)
"""Each voice with each option in each kind of talk."""


@pytest.fixture(scope="module")
def models(demo_base, pirate_lora, liar_lora, pirate) -> Models:
    return Models(demo_base, (pirate_lora, liar_lora), pirate)


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_answers_are_the_same_with_each_voice_and_option(models, kind):
    found = differences(models, {kind: kinds_for(models)[kind]}, COUNT)[kind]

    assert (found.same, found.same_in_a_chat) == (COUNT, COUNT), found
    assert found.to_the_letter > 0.9 * COUNT
    assert max(found.largest_gap, found.largest_logprob_gap) < CLOSE
    # guesses are made and taken, but for logprobs
    assert {option for option, count in found.accepted.items() if count} == {*OPTIONS} - {
        "logprobs"
    }
