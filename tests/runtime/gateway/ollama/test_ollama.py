"""Ollama's requests and answers, translated: no engine is asked here."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path

import ollama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import Array, GGUFFile, TensorInfo
from runtime.engine.opened_model import Model
from runtime.gateway.api_errors import ApiError
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog, Named
from runtime.gateway.ollama.ollama_listing import capabilities, counted, shown, tag
from runtime.gateway.ollama.ollama_request import (
    NUMBERS,
    Ability,
    chat_question,
    embed_question,
    generate_question,
    keeps_s,
    wants_stream,
)
from runtime.gateway.ollama.ollama_response import Answer, Voice, joined, lines, stamp
from runtime.gateway.scheduling.pool import Fleet
from runtime.gateway.settings import Settings

MODEL = Ability("pirate", 512, thinks=True)
PLAIN = Ability("plain", 512, thinks=False)
DEEP: dict = {}
for _ in range(5000):
    DEEP = {"a": [DEEP]}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()


def asked(model: Ability = MODEL, **body) -> dict:
    """The body that an engine gets for a chat."""
    return chat_question({"messages": [{"role": "user", "content": "hi"}], **body}, model).body


def refusal(ask, *args) -> str:
    with pytest.raises(ApiError) as caught:
        ask(*args)
    assert caught.value.status == 400
    return caught.value.message


# what is asked


def test_a_chat_is_streamed_by_the_engine_with_its_numbers():
    assert chat_question({"messages": []}, MODEL).route == "/v1/chat/completions"
    assert asked() == {
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_options_have_the_engines_names():
    given_options = {
        "temperature": 0, "top_k": 40.0, "top_p": 0.9, "min_p": 0.1, "typical_p": 1, "seed": 7,
        "num_predict": 5, "num_keep": 4, "repeat_penalty": 1.1, "repeat_last_n": 33,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "mirostat": 2, "mirostat_tau": 5,
        "mirostat_eta": 0.1, "stop": "x",
    }  # fmt: skip
    body = asked(options=given_options)

    assert {name: value for name, value in body.items() if not name.startswith(("str", "mes"))} == {
        "temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 1, "seed": 7,
        "max_tokens": 5, "n_keep": 4, "repeat_penalty": 1.1, "repeat_last_n": 33,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "mirostat": 2, "mirostat_tau": 5,
        "mirostat_eta": 0.1, "stop": ["x"],
    }  # fmt: skip
    assert type(body["top_k"]) is int


def test_options_for_loading_and_unknown_ones_change_nothing():
    options = {"num_ctx": 9, "num_gpu": 99, "num_thread": 3, "use_mmap": True, "lora": [1], "x": {}}

    assert asked(options=options) == asked()


@pytest.mark.parametrize("limit", [-1, -2])
def test_an_answer_without_a_limit_has_none(limit):
    assert asked(options={"num_predict": limit}) == asked()


@pytest.mark.parametrize("value", ["7", True, [], {}, 2**31, float("nan"), float("inf")])
def test_an_option_of_the_wrong_type_is_refused_by_its_name(value):
    assert '"top_k"' in refusal(lambda: asked(options={"top_k": value}))


@pytest.mark.parametrize("options", [[], "x", {"stop": 3}, {"stop": [1]}, {"temperature": "hot"}])
def test_options_that_are_none_are_refused(options):
    assert refusal(lambda: asked(options=options))


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (2**31 + 5, 5), (2**53, 0), (-9, -1)])
def test_a_seed_of_any_length_is_one_the_engine_takes(seed, sent):
    assert asked(options={"seed": seed})["seed"] == sent


@pytest.mark.parametrize(("last", "sent"), [(-1, 512), (64, 64), (2**31 - 1, 512), (0, 0)])
def test_no_more_tokens_are_looked_back_at_than_there_can_be(last, sent):
    """The engine makes room for all of them at once: two thousand million take 8 GB."""
    assert asked(options={"repeat_last_n": last})["repeat_last_n"] == sent


def test_a_format_is_a_schema():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}

    assert asked(format=schema)["response_format"]["json_schema"] == {"schema": schema}
    assert asked(format="json")["response_format"]["json_schema"] == {"schema": {}}
    assert asked(format="") == asked() == asked(format=None)
    assert "format" in refusal(lambda: asked(format="yaml"))


def test_images_are_parts_of_the_message():
    (message,) = asked(messages=[{"role": "user", "content": "see", "images": [PIXEL]}])["messages"]

    assert message["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]


@pytest.mark.parametrize("image", ["http://x/y.png", "file:///etc/passwd", "aGVsbG8=", "!!", 3])
def test_only_images_themselves_are_images(image):
    messages = [{"role": "user", "content": "", "images": [image]}]

    assert "image" in refusal(lambda: asked(messages=messages))


def test_calls_of_tools_have_ids_that_the_results_name():
    calls = [
        {"function": {"name": "add", "arguments": {"a": 1}}},
        {"function": {"name": "mul", "arguments": {"b": "é"}}},
        {"function": {"name": "add", "arguments": {}}},
    ]
    results = [
        {"role": "tool", "tool_name": "mul", "content": "M"},
        {"role": "tool", "tool_name": "add", "content": "A"},
        {"role": "tool", "content": "B"},
    ]
    call, *answers = asked(
        messages=[{"role": "assistant", "thinking": "hm", "tool_calls": calls}, *results]
    )["messages"]
    ids = [one["id"] for one in call["tool_calls"]]

    assert len(set(ids)) == 3
    assert [one["function"]["arguments"] for one in call["tool_calls"]] == [
        '{"a":1}', '{"b":"é"}', "{}",
    ]  # fmt: skip
    assert [answer["tool_call_id"] for answer in answers] == [ids[1], ids[0], ids[2]]
    assert call["reasoning_content"] == "hm"


def test_thinking_is_what_the_template_is_told():
    off = {"enable_thinking": False, "thinking": False}  # templates call it the one or the other
    assert asked(think=False)["chat_template_kwargs"] == off
    assert asked(think="high")["reasoning_effort"] == "high"
    assert asked(PLAIN, think=False)["chat_template_kwargs"] == off
    assert "does not support thinking" in refusal(lambda: asked(PLAIN, think=True))
    assert "think" in refusal(lambda: asked(think="much"))


def test_likely_tokens_are_counted():
    assert asked(logprobs=True)["top_logprobs"] == 1
    question = chat_question({"messages": [], "logprobs": True, "top_logprobs": 3}, MODEL)
    assert question.body["top_logprobs"] == 3
    assert question.has_top
    assert not chat_question({"messages": [], "logprobs": True}, MODEL).has_top
    assert "top_logprobs" in refusal(lambda: asked(logprobs=True, top_logprobs=21))


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"role": 3}]},
        {"messages": [{"role": "user", "content": {}}]},
        {"messages": [{"role": "user", "images": "x"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"messages": [{"role": "x", "tool_calls": [{"function": {"arguments": [1]}}]}]},
        {"messages": [{"role": "x", "tool_calls": [{"function": {"arguments": DEEP}}]}]},
        {"format": DEEP["a"]},
        {"tools": {}},
    ],
)
def test_what_has_the_wrong_type_is_refused(body):
    assert refusal(lambda: asked(**body))


ODD = (
    None, True, False, 0, 1, -1, 3.5, math.nan, math.inf, 2**70, "", "x", "\ud800", [], [1], ["x"],
    [None], [[]], [{}], [{"x": 1}], {}, {"x": 1}, {"function": 1}, [{"function": {}}],
)  # fmt: skip
FIELDS = (
    "messages", "prompt", "system", "suffix", "template", "context", "raw", "images", "options",
    "format", "think", "tools", "logprobs", "top_logprobs", "input", "keep_alive", "stream",
)  # fmt: skip
OF_MESSAGES = (
    "role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id",
)  # fmt: skip


def odd_bodies(odd: object) -> Iterator[dict]:
    for field in FIELDS:
        yield {"prompt": "x", field: odd}
        yield {"prompt": "x", "logprobs": True, "raw": True, field: odd}
    for field in OF_MESSAGES:
        yield {"messages": [{"role": "tool", field: odd}]}
    for option in (*NUMBERS, "stop"):
        yield {"options": {option: odd}}


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_any_body_is_a_question_or_refused(odd):
    chats = partial(chat_question, model=MODEL)
    generates = partial(generate_question, model=MODEL)
    statuses = set()
    for body in odd_bodies(odd):
        for ask in (chats, generates, embed_question, keeps_s, wants_stream):
            try:
                ask(body)
            except ApiError as error:
                statuses.add(error.status)

    assert statuses <= {400}


def test_a_prompt_is_a_chat_of_one_message():
    question = generate_question(
        {"prompt": "hi", "system": "be brief", "images": [PIXEL], "template": ""}, MODEL
    )

    assert question.route == "/v1/chat/completions"
    system, user = question.body["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][0] == {"type": "text", "text": "hi"}


def test_a_raw_prompt_is_gone_on_with():
    question = generate_question(
        {"prompt": "a", "raw": True, "format": "json", "logprobs": True, "top_logprobs": 2}, MODEL
    )

    assert question.route == "/v1/completions"
    assert question.body["prompt"] == "a"
    assert question.body["json_schema"] == {}
    assert question.body["n_probs"] == 2
    assert "messages" not in question.body


def test_a_suffix_asks_for_what_is_between():
    question = generate_question({"prompt": "a", "suffix": "z"}, MODEL)

    assert question.route == "/infill"
    assert (question.body["input_prefix"], question.body["input_suffix"]) == ("a", "z")


@pytest.mark.parametrize(
    "body", [{"template": "{{ x }}"}, {"context": [1]}, {"raw": True, "system": "x"},
             {"raw": True, "images": [PIXEL]}, {"prompt": 3}],
)  # fmt: skip
def test_what_would_be_answered_as_something_else_is_refused(body):
    assert refusal(generate_question, {"prompt": "hi", **body}, MODEL)


def test_texts_to_embed_are_one_or_many():
    assert embed_question({"input": "a"}).body["input"] == ["a"]
    assert embed_question({"input": ["a", ""]}).body["input"] == ["a", ""]
    assert embed_question({}).body["input"] == embed_question({"input": ""}).body["input"] == []
    for wrong in (3, {"a": 1}, [1], [["a"]]):
        assert refusal(embed_question, {"input": wrong}) == "invalid input type"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), (0, 0), ("0", 0), ("0s", 0), (-1, -1), ("-1", -1), ("5m", 300),
     ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("-5m", -300), (90.5, 90.5)],
)  # fmt: skip
def test_a_model_is_kept_for_a_number_of_seconds_or_a_duration(value, seconds):
    assert keeps_s({"keep_alive": value}) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["soon", "5 m", True, [], float("nan"), "9" * 400])
def test_a_time_that_is_none_is_refused(value):
    assert "keep_alive" in refusal(keeps_s, {"keep_alive": value})


def test_an_answer_is_streamed_unless_it_is_not_wanted():
    assert wants_stream({})
    assert wants_stream({"stream": None})
    assert not wants_stream({"stream": False})
    assert refusal(wants_stream, {"stream": "no"})


# what is answered


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


def answer(chunks: Iterable[bytes], voice: Voice) -> list[dict]:
    """The lines that an engine's stream is worth."""

    async def gathered() -> list[dict]:
        async def coming() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines(coming(), Answer(voice, began=1.0, headed=1.5))]

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


CHAT, GENERATE = Voice("pirate:latest", "chat", has_top=True), Voice("pirate", "generate")


@settings(deadline=None)
@given(st.lists(st.integers(0, len(stream(EVENTS))), max_size=40).map(sorted))
@pytest.mark.parametrize("voice", [CHAT, GENERATE])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_answer_is_the_same_however_its_bytes_are_cut(voice, ending, cuts):
    raw = stream(EVENTS, ending)
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    assert timeless(answer(chunks, voice)) == timeless(answer([raw], voice))


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


@pytest.mark.parametrize("voice", [CHAT, GENERATE])
def test_an_answer_at_once_is_all_its_lines(voice):
    said = answer([stream(EVENTS)], voice)
    whole = joined(voice, said)
    part = whole["message"] if voice.form == "chat" else whole

    assert part["content" if voice.form == "chat" else "response"] == "Grüß dich 🏴‍☠️\n\ndata: x"
    assert part["thinking"] == "I wonder …"
    assert [call["function"]["name"] for call in part["tool_calls"]] == ["get", "stop"]
    assert len(whole["logprobs"]) == 1
    assert whole["done"]
    assert whole["eval_count"] == 5


def test_the_official_clients_types_take_every_line():
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


# what is told of models


def named(path: Path, projector: Path | None = None, **metadata) -> Named:
    if not path.exists():
        path.write_bytes(b"GGUF" + bytes(60))
    told = {
        "general.architecture": "llama", "general.file_type": 15, "llama.context_length": 512,
        **metadata,
    }  # fmt: skip
    tensors = (
        TensorInfo("a.weight", (1000, 1024), GGMLType.by_name("Q4_K"), 0, path),
        TensorInfo("b.weight", (200, 1024), GGMLType.by_name("F32"), 0, path),
    )
    header = GGUFFile(path, 64, told, tensors)
    return Named("pirate", "pirate", Model(header, (), projector), None, ())


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({}, ["completion"]),
        ({"tokenizer.chat_template": "{% if tools %}"}, ["completion", "tools"]),
        ({"tokenizer.chat_template": "{{ enable_thinking }}"}, ["completion", "thinking"]),
        ({"tokenizer.chat_template": "<think>"}, ["completion", "thinking"]),
        ({"tokenizer.chat_template": "toolsmith rethinking"}, ["completion"]),
        ({"tokenizer.ggml.fim_pre_token_id": 3}, ["completion", "insert"]),
        ({"llama.pooling_type": 1}, ["embedding"]),
        ({"llama.pooling_type": 0}, ["completion"]),
        ({"llama.attention.causal": False}, ["embedding"]),
    ],
)
def test_what_a_model_can_do_is_read_off_its_header(tmp_path, metadata, found):
    assert capabilities(named(tmp_path / "m.gguf", **metadata)) == found


def test_a_model_with_a_projector_sees(tmp_path):
    model = named(tmp_path / "m.gguf", tmp_path / "mmproj.gguf")

    assert capabilities(model) == ["completion", "vision"]
    assert tag(model)["details"]["families"] == ["llama", "clip"]


def test_a_model_is_listed_with_its_details(tmp_path):
    told = tag(named(tmp_path / "m.gguf"))

    assert told["name"] == told["model"] == "pirate"
    assert told["size"] == 64
    assert re.fullmatch(r"[0-9a-f]{64}", told["digest"])
    assert told["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "1M", "quantization_level": "Q4_K_M",
    }  # fmt: skip
    ollama.ListResponse(models=[told])


def test_a_file_that_does_not_say_its_quantization_is_known_by_most_of_its_bytes(tmp_path):
    told = tag(named(tmp_path / "m.gguf", **{"general.file_type": 4711}))

    assert told["details"]["quantization_level"] == "F32"


def test_the_digest_changes_with_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    first = tag(named(path))["digest"]

    assert tag(named(path))["digest"] == first
    assert tag(named(path, **{"general.name": "x"}))["digest"] != first
    os.utime(path, ns=(0, 1))
    assert tag(named(path))["digest"] != first


def test_a_file_that_is_gone_is_still_listed(tmp_path):
    model = named(tmp_path / "m.gguf")
    model.model.header.path.unlink()

    assert tag(model)["size"] == 0


def test_metadata_is_shown_without_long_arrays_and_paths(tmp_path):
    secret = tmp_path / "home" / "me"
    model = named(
        tmp_path / "m.gguf",
        **{
            "general.name": "Pirate",
            "general.license": "mit",
            "general.base_model.0.repo_url": "https://huggingface.co/a/b",
            "decant.base": str(secret / "base"),
            "decant.other": "./base",
            "decant.windows": r"C:\Users\me",
            "quantize.imatrix.file": "me/imatrix.dat",
            "general.datasets": Array(2, ("a", f"file://{secret}")),
            "tokenizer.chat_template": "{{ x }}",
            "tokenizer.ggml.tokens": Array(32000, ("a", "b")),
            "tokenizer.ggml.pre": "default",
            "llama.some": Array(2, (1, 2)),
            "llama.rope.scale": float("nan"),
        },
    )
    told = shown(model)

    assert "me" not in re.findall(r"\w+", json.dumps(told, allow_nan=False))
    assert told["template"] == "{{ x }}"
    assert told["license"] == "mit"
    assert told["model_info"] == {
        "general.architecture": "llama", "general.file_type": 15, "llama.context_length": 512,
        "general.name": "Pirate", "general.license": "mit",
        "general.base_model.0.repo_url": "https://huggingface.co/a/b",
        "tokenizer.ggml.tokens": None, "tokenizer.ggml.pre": "default", "llama.some": [1, 2],
        "llama.rope.scale": None, "general.parameter_count": 1_228_800,
    }  # fmt: skip
    ollama.ShowResponse(**told)


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (2_800_000, "3M"), (137_000_000, "137M"), (1_000_000_000, "1.0B"),
     (70_600_000_000, "70.6B"), (4_000, "4K")],
)  # fmt: skip
def test_parameters_are_counted_as_on_model_cards(number, text):
    assert counted(number) == text


@pytest.mark.llamacpp
def test_a_model_that_only_makes_vectors_is_not_asked_for_answers(tmp_path, toolchain):
    embedder = named(tmp_path / "minilm.gguf", **{"llama.pooling_type": 1}).model
    settings = Settings()
    gateway = Gateway(settings, Catalog([embedder]), Fleet(settings, toolchain))
    with TestClient(build_app(gateway), base_url="http://localhost") as client:
        for route, body in (("chat", {"messages": []}), ("generate", {"prompt": "x"})):
            refused = client.post(f"/api/{route}", json={"model": "minilm", **body})
            assert refused.status_code == 400
            assert refused.json() == {"error": f'"minilm" does not support {route}'}
        assert client.post("/api/show", json={"model": "minilm"}).json()["capabilities"] == [
            "embedding"
        ]
        assert client.get("/api/ps").json() == {"models": []}
