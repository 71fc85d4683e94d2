"""What the page says when an answer does not come, or not as answers do."""

from __future__ import annotations

import pytest

from tests.runtime.gateway.page.conftest import (
    CHAT,
    DONE,
    ENDED,
    LAST,
    answering,
    ask,
    base_of,
    delta,
    event,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]


USED = event(choices=[], usage={"completion_tokens": 7}, timings={"predicted_per_second": 3.5})
STREAMS = {
    "whole": (delta(content="a") + ": ping\n\n" + ENDED + USED + DONE, "a", ""),
    "carriage returns": ((delta(content="a") + ENDED + DONE).replace("\n", "\r\n"), "a", ""),
    "cut": (delta(content="a"), "a", "The connection closed before the answer ended."),
    "failed": (delta(content="a") + event(error={"message": "no memory"}), "a", "no memory"),
    "garbled": (delta(content="a") + "data: {\n\n", "a", "The server sent something that is not"),
    "nothing": ("", "", "The connection closed before the answer ended."),
}


def test_the_servers_own_words_are_shown_and_the_question_can_be_asked_again(opened, served):
    visit = opened()
    visit.is_refusal_expected = True
    long = ("What does a cow say? " * 400).strip()
    body = {"model": base_of(served), "messages": [{"role": "user", "content": long}]}
    status, refusal = served.ask(CHAT, body)

    ask(visit, long)

    assert status == 400
    assert visit.text(".answer .error") == refusal["error"]["message"]
    assert visit["[data-again]"].is_visible()


def test_a_server_that_is_gone_is_named_and_asked_again_when_it_is_back(opened):
    visit = opened()
    visit.is_refusal_expected = True
    visit.page.context.set_offline(True)
    ask(visit, "What does a cow say?")
    assert visit.text(".answer .error").startswith("The server does not answer")
    visit.page.context.set_offline(False)
    visit["[data-again]"].click()
    visit.until(f"document.querySelector('{LAST}').textContent.length > 5")
    assert visit["#chat .answer .error:visible"].count() == 0


def test_a_stream_may_end_in_many_ways(opened):
    visit = opened()
    for name, (stream, text, error) in STREAMS.items():
        visit.page.unroute_all()
        visit.page.route(f"**{CHAT}", answering(stream))
        assert ask(visit, name) == text, name
        shown = visit.text(".message:last-child .answer")
        assert (error in shown) if error else (shown.split("\n")[0] == text), name
        assert ("7 tokens · 3.5 tokens/s" in shown) == (USED in stream), name


def test_reasoning_is_folded_away_and_kept_from_the_conversation(opened):
    stream = delta(reasoning_content="Let me **see**.") + delta(content="Yes.") + ENDED + DONE
    visit = opened()
    visit.page.route(f"**{CHAT}", answering(stream))
    ask(visit, "Well?")

    assert visit.text(LAST) == "Yes."
    assert visit[".reasoning .markdown"].is_hidden()
    visit[".reasoning summary"].click()
    assert visit.text(".reasoning .markdown") == "Let me see."
    ask(visit, "Sure?")
    said = visit.asked(CHAT)[-1]["messages"]
    assert said[1] == {"role": "assistant", "content": "Yes."}
