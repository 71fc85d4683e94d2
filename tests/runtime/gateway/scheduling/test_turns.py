"""Adapters take turns within an engine: a long answer of one delays the others by a moment."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.gateway.conftest import Served, serving, until, used

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

NAMES = ("base", "base:pirate", "base:liar")
PROMPT = "tell me"
TOKENS = {"off": 1500, "ngram": 1000, "model": 500}
"""The tokens of a long answer, by the kind of guesses: with them each token takes longer."""


@pytest.fixture(
    scope="module", params=["off", "ngram", pytest.param("model", marks=pytest.mark.slow)]
)
def long_context(request, voices, tmp_path_factory) -> Iterator[tuple[Served, dict[str, object]]]:
    """The demo's base with two adapters and four slots, in which long answers have room.

    Without guesses, with those by n-grams, and with those of the base as its own draft model.
    """
    folder = tmp_path_factory.mktemp("turns")
    guesses = ("--spec", str(voices[0]) if request.param == "model" else request.param)
    with serving(folder, *voices, *guesses, "--parallel", "4", "--ctx", "2048") as found:
        found.wait_until_ready()
        yield found, {"max_tokens": TOKENS[request.param], "ignore_eos": True}


def test_short_answers_come_beside_a_long_one_of_another_adapter(long_context):
    served, long = long_context
    expected = {name: served.says(name, PROMPT) for name in NAMES}
    alone = served.says("base:pirate", PROMPT, **long)
    ended, beside = [], 0

    def ask_long() -> None:
        for _ in range(8):
            answer = served.says("base:pirate", PROMPT, **long)
            assert answer == alone
            ended.append(answer)

    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_long)
        assert until(lambda: used(served) == 1)
        while not asking.done():
            for name in ("base", "base:liar"):
                before = len(ended)
                assert served.says(name, PROMPT) == expected[name]
                beside += len(ended) == before

        asking.result()
    assert beside >= 3  # they did not wait for the end of a long one


def test_three_long_answers_at_once_are_what_they_are_alone(long_context):
    served, long = long_context
    alone = {name: served.says(name, PROMPT, **long) for name in NAMES}
    assert len(set(alone.values())) == 3

    with ThreadPoolExecutor(3) as threads:
        asked = {name: threads.submit(served.says, name, PROMPT, **long) for name in NAMES}
        assert {name: answer.result() for name, answer in asked.items()} == alone
