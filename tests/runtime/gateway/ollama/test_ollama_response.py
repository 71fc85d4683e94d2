"""What the engine answers, as clients of Ollama's are answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.api_errors import ApiError
from runtime.gateway.ollama.ollama_response import Answer, LineFormat, joined, lines, stamp


def delta(reason: str | None = None, logprobs: dict | None = None, **said) -> dict:
    choice = {"index": 0, "delta": said, "finish_reason": reason}
    return {"choices": [choice | ({"logprobs": logprobs} if logprobs else {})]}


def called(index: int, arguments: str, **more) -> dict:
    function = {"arguments": arguments, **more}
    return {"index": index, "function": function, **({"id": f"c{index}"} if more else {})}


LIKELY = {
    "id": 3, "token": "x", "bytes": [120], "logprob": -0.5,
    "top_logprobs": [{"id": 3, "token": "x", "bytes": [120], "logprob": -0.5}],
}  # fmt: skip
END = {
    "choices": [],
    "usage": {"prompt_tokens": 12, "completion_tokens": 5},
    "timings": {"prompt_n": 2, "cache_n": 10, "prompt_ms": 2.5, "predicted_n": 5,
                "predicted_ms": 40},
}  # fmt: skip
EVENTS = (
    delta(role="assistant", content=None),
    delta(reasoning_content="I wonder …"),
    delta(content="Grüß", logprobs={"content": [LIKELY]}),
    delta(content=" dich 🏴‍☠️\n\ndata: x"),
    delta(tool_calls=[called(0, "", name="get")]),
    delta(tool_calls=[called(0, '{"city": "Pa')]),
    delta(tool_calls=[called(0, 'ris"}'), called(1, "{}", name="stop")]),
    delta("tool_calls"),
    END,
)


def stream(events: Iterable[dict], ending: str = "\n") -> bytes:
    said = [f"data: {json.dumps(event, ensure_ascii=False)}{ending}{ending}" for event in events]
    return (f":{ending}{ending}" + "".join(said) + f"data: [DONE]{ending}{ending}").encode()


def answer(chunks: Iterable[bytes], line_format: LineFormat) -> list[dict]:
    """The lines that an engine's stream is worth."""

    async def gathered() -> list[dict]:
        async def coming() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines(coming(), Answer(line_format, began=1.0, headed=1.5))]

    return finished(gathered())


def finished(work: Coroutine[None, None, list[dict]]) -> list[dict]:
    """What comes of work that waits for nothing, and so needs no event loop."""
    with pytest.raises(StopIteration) as done:
        work.send(None)
    return done.value.value


def timeless(said: list[dict]) -> list[dict]:
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("created_at", "total_duration")
        }
        for line in said
    ]


CHAT, GENERATE = LineFormat("pirate:latest", "chat", has_top=True), LineFormat("pirate", "generate")


@given(st.lists(st.integers(0, len(stream(EVENTS))), max_size=40).map(sorted))
@pytest.mark.parametrize("line_format", [CHAT, GENERATE])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_answer_is_the_same_however_its_bytes_are_cut(line_format, ending, cuts):
    raw = stream(EVENTS, ending)
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    assert timeless(answer(chunks, line_format)) == timeless(answer([raw], line_format))


def test_each_piece_of_a_chat_is_a_line_with_a_message():
    said = answer([stream(EVENTS)], CHAT)

    assert [line["message"] for line in said] == [
        {"role": "assistant", "content": "", "thinking": "I wonder …"},
        {"role": "assistant", "content": "Grüß"},
        {"role": "assistant", "content": " dich 🏴‍☠️\n\ndata: x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c0", "function": {"index": 0, "name": "get",
                                          "arguments": {"city": "Paris"}}},
                {"id": "c1", "function": {"index": 1, "name": "stop", "arguments": {}}},
            ],
        },
        {"role": "assistant", "content": ""},
    ]  # fmt: skip
    assert [line["done"] for line in said] == [False] * 4 + [True]
    assert {line["model"] for line in said} == {"pirate:latest"}
    told = {"token": "x", "logprob": -0.5, "bytes": [120]}
    assert said[1]["logprobs"] == [told | {"top_logprobs": [told]}]


def test_other_likely_tokens_are_told_only_when_they_are_wanted():
    first = next(line for line in answer([stream(EVENTS)], GENERATE) if "logprobs" in line)

    assert first["logprobs"] == [{"token": "x", "logprob": -0.5, "bytes": [120]}]


def test_the_last_line_has_the_numbers_in_nanoseconds():
    last = answer([stream(EVENTS)], CHAT)[-1]

    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] == 12
    assert last["prompt_eval_duration"] == 2_500_000
    assert last["eval_count"] == 5
    assert last["eval_duration"] == 40_000_000
    assert last["load_duration"] == pytest.approx(497_500_000, abs=10)
    assert last["total_duration"] > 0


def test_an_answer_that_was_cut_says_length():
    assert answer([stream([delta("length", content="x")])], CHAT)[-1]["done_reason"] == "length"


def test_without_counts_of_use_the_timings_tell():
    timings = {"choices": [], "timings": END["timings"]}
    last = answer([stream([delta("stop"), timings])], CHAT)[-1]

    assert (last["prompt_eval_count"], last["eval_count"]) == (12, 5)


@pytest.mark.parametrize("line_format", [CHAT, GENERATE])
def test_an_answer_at_once_is_all_its_lines(line_format):
    said = answer([stream(EVENTS)], line_format)
    whole = joined(line_format, said)
    is_chat = line_format.form == "chat"
    part = whole["message"] if is_chat else whole

    assert part["content" if is_chat else "response"] == "Grüß dich 🏴‍☠️\n\ndata: x"
    assert part["thinking"] == "I wonder …"
    assert [call["function"]["name"] for call in part["tool_calls"]] == ["get", "stop"]
    assert len(whole["logprobs"]) == 1
    assert whole["done"]
    assert whole["eval_count"] == 5


def test_the_official_clients_types_take_every_line():
    import ollama

    said = answer([stream(EVENTS)], CHAT)
    for line in (*said, joined(CHAT, said)):
        ollama.ChatResponse(**json.loads(json.dumps(line)))
    said = answer([stream(EVENTS)], GENERATE)
    for line in (*said, joined(GENERATE, said)):
        ollama.GenerateResponse(**json.loads(json.dumps(line)))


def test_what_fills_a_gap_comes_in_another_form():
    events = [
        {"content": "b", "stop": False, "completion_probabilities": [LIKELY]},
        {"content": "", "stop": True, "stop_type": "limit", "timings": END["timings"]},
    ]
    first, last = answer([stream(events)], GENERATE)

    assert first["response"] == "b"
    assert first["logprobs"][0]["token"] == "x"
    assert (last["done_reason"], last["eval_count"]) == ("length", 5)


def test_a_completion_has_its_text_in_the_choice():
    events = [
        {"choices": [{"text": "ab", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "stop"}], "usage": END["usage"]},
    ]

    assert joined(GENERATE, answer([stream(events)], GENERATE))["response"] == "ab"


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b'data: {"error": {"code": 400, "message": "too long"}}\n\n', 400, "too long"),
        (b'error: {"code": 503, "message": "busy"}\n\n', 503, "busy"),
        (b'data: {"error": {"message": "bad", "code": "x"}}\n\n', 500, "bad"),
        (b"data: {\n\n", 502, "JSON"),
        (b"data: []\n\n", 502, "JSON"),
        (b"data: " + b"[" * 100_000 + b"\n\n", 502, "JSON"),
        (b"", 502, "broke off"),
        (b"data: [DONE]\n\n", 502, "broke off"),
    ],
)
def test_an_engine_that_fails_is_told_of(raw, status, message):
    begun = stream([delta(content="x")])[: -len("data: [DONE]\n\n")]
    with pytest.raises(ApiError, match=message) as caught:
        answer([begun, raw], CHAT)

    assert caught.value.status == status


def test_a_call_of_a_tool_that_was_cut_off_is_not_passed_on():
    events = [delta(tool_calls=[called(0, '{"city": "Pa', name="get")]), delta("length")]

    with pytest.raises(ApiError, match="get"):
        answer([stream(events)], CHAT)


def test_times_are_in_the_form_of_rfc_3339():
    assert stamp(0) == "1970-01-01T00:00:00.000000000Z"
    assert stamp(1_795_274_791_000_000_012) == "2026-11-21T15:26:31.000000012Z"
