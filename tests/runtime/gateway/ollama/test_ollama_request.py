"""What a client of Ollama's asks, as the engine is asked it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from functools import partial

import pytest

from runtime.gateway.api_errors import ApiError
from runtime.gateway.ollama.ollama_request import (
    NUMBERS,
    Ability,
    chat_question,
    embed_question,
    generate_question,
    keeps_s,
    wants_stream,
)

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
