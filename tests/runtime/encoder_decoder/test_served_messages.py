"""Encoder-decoder models served: Anthropic's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.encoder_decoders import ANSWERS, GREEDY, MESSAGES, TALK, Served

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


def events_of(served: Served, body: Mapping[str, object]) -> list[Any]:
    """The events of a streamed message, their names checked."""
    with served.send("POST", MESSAGES, {**body, "stream": True}) as connection:
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "text/event-stream"
        *said, rest = response.read().decode().split("\n\n")
    assert rest == ""
    names, data = zip(*(event.split("\n") for event in said), strict=True)
    events = [json.loads(line.removeprefix("data: ")) for line in data]
    assert [name.removeprefix("event: ") for name in names] == [event["type"] for event in events]
    return events


def asks(question: str, **settings: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 200, **settings}


@pytest.mark.parametrize("question", ANSWERS)
def test_a_message_is_answered_as_anthropic_does_at_once_and_in_events(taught, question):
    whole = taught.post(MESSAGES, asks(question, **GREEDY))
    start, block, *deltas, end_of_block, end, stop = events_of(taught, asks(question, **GREEDY))

    assert whole["content"] == [{"type": "text", "text": ANSWERS[question]}]
    assert (whole["type"], whole["role"]) == ("message", "assistant")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)
    assert start["type"] == "message_start"
    message = {name: whole[name] for name in ("type", "role", "model", "stop_sequence")}
    counts = {**whole["usage"], "output_tokens": 0}
    for name, value in {**message, "content": [], "stop_reason": None, "usage": counts}.items():
        assert start["message"][name] == value
    text = {"type": "text", "text": ""}
    assert block == {"type": "content_block_start", "index": 0, "content_block": text}
    assert "".join(delta["delta"]["text"] for delta in deltas) == ANSWERS[question]
    assert {delta["type"] for delta in deltas} == {"content_block_delta"}
    assert end_of_block == {"type": "content_block_stop", "index": 0}
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"] == {"output_tokens": whole["usage"]["output_tokens"]}
    assert stop == {"type": "message_stop"}


def test_a_message_says_what_ended_it(taught):
    cut = taught.post(MESSAGES, asks("a e i", **GREEDY) | {"max_tokens": 3})
    stopped = taught.post(MESSAGES, asks("a e i", stop_sequences=["here", "; "], **GREEDY))

    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 3)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "; ")
    assert stopped["content"][0]["text"] == "ai ea"


def test_a_messages_tokens_are_counted_with_the_systems(taught):
    parts = [{"type": "text", "text": "oa"}, {"type": "text", "text": "ts"}]
    body = asks("th", system=parts, **GREEDY)
    del body["max_tokens"]
    tokens = taught.post("/tokenize", {"content": "oats\nth", "add_special": True})["tokens"]

    assert taught.post(f"{MESSAGES}/count_tokens", body) == {"input_tokens": len(tokens)}
    answer = taught.post(MESSAGES, {**body, "max_tokens": 1})
    assert answer["usage"] == {"input_tokens": len(tokens), "output_tokens": 1}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        ({"messages": TALK}, "`max_tokens`"),
        ({"max_tokens": 5}, "from the user"),
        (asks("a", max_tokens=0), "`max_tokens`"),
        (asks("a", messages="a"), "`messages`"),
        (asks("a", system=5), "`content`"),
        (asks("a", stop_sequences="x"), "`stop_sequences`"),
        (asks("a", tools=[{"name": "x"}]), "`tools`"),
        (asks("a", thinking={"type": "enabled", "budget_tokens": 9}), "`thinking`"),
        (asks("a", messages=[{"role": "user", "content": [{"type": "image"}]}]), "image"),
        (asks("th " * 9000), "tokens and the encoder takes"),
    ],
)
def test_a_wrong_message_is_refused_in_anthropics_form(taught, body, said):
    status, answer = taught.call("POST", MESSAGES, body)

    assert (status, answer["type"]) == (400, "error")
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]


def test_a_message_without_the_key_is_refused_in_anthropics_form(taught):
    status, answer = taught.call("POST", MESSAGES, asks("a"), Authorization="")

    assert (status, answer["error"]["type"]) == (401, "authentication_error")
