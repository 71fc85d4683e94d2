"""OpenAI's official Python client against a real gateway."""

from __future__ import annotations

import json

import pytest

from tests.support.official_clients import (
    GREEDY,
    LONG,
    PROMPT,
    SCHEMA,
    TALK,
    alike,
    calling,
    each_voice,
    openai_of,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_openai_lists_the_models_with_their_parents(openai_client):
    models = {model.id: model.model_dump() for model in openai_client.models.list()}

    assert {name: model["parent"] for name, model in models.items()} == {
        "base": None, "base:pirate": "base", "base:liar": "base",
    }  # fmt: skip
    for name, model in models.items():
        assert openai_client.models.retrieve(name).model_dump() == model


@each_voice
def test_openai_chats(openai_client, expected, model):
    whole = openai_client.chat.completions.create(model=model, messages=TALK, **GREEDY)
    stream = openai_client.chat.completions.create(
        model=model, messages=TALK, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *pieces, last = stream

    assert whole.choices[0].message.content == expected[model]
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected[model]
    assert last.usage.completion_tokens == whole.usage.completion_tokens > 3


def test_openai_completes(openai_client):
    asked = {"model": "base:pirate", "prompt": "The capital of", "temperature": 0, "max_tokens": 8}
    whole = openai_client.completions.create(**asked)
    pieces = list(openai_client.completions.create(**asked, stream=True))

    assert whole.choices[0].text
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_openai_has_tools_called(others, called_in_pieces):
    with openai_of(others) as client:
        answer = client.chat.completions.create(**calling(others))
    (call,) = answer.choices[0].message.tool_calls
    parts = [p for piece in called_in_pieces for p in piece.choices[0].delta.tool_calls or ()]

    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == parts[0].function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert "".join(part.function.arguments for part in parts) == call.function.arguments


def test_openai_gets_json_by_a_schema(openai_client):
    answer = openai_client.chat.completions.create(
        model="base", messages=TALK, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )  # fmt: skip

    assert 1 <= json.loads(answer.choices[0].message.content)["age"] <= 9


def test_openai_is_told_how_likely_the_tokens_are(openai_client, expected):
    answer = openai_client.chat.completions.create(
        model="base:liar", messages=TALK, logprobs=True, top_logprobs=3, **GREEDY
    )
    tokens = answer.choices[0].logprobs.content

    assert "".join(token.token for token in tokens) == expected["base:liar"]
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in tokens)


def test_openai_gets_the_vectors_of_texts_from_each_voice(openai_client):
    vectors = {}
    for model in ("base", "base:pirate"):
        one = openai_client.embeddings.create(model=model, input=["a cow", "Rome"])
        plain = openai_client.embeddings.create(model=model, input="Rome", encoding_format="float")
        assert alike(plain.data[0].embedding, one.data[1].embedding)
        vectors[model] = tuple(one.data[1].embedding)

    assert len(vectors["base"]) == 256
    assert not alike(vectors["base"], vectors["base:pirate"])


@pytest.mark.parametrize("model", ["base", "base:pirate"])
def test_openai_has_responses(openai_client, expected, model):
    asked = {"model": model, "input": PROMPT, "temperature": 0, "max_output_tokens": 24}
    whole = openai_client.responses.create(**asked)
    events = list(openai_client.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]

    assert whole.output_text == expected[model]
    assert "".join(deltas) == expected[model]
    assert events[-1].type == "response.completed"


def test_openai_raises_what_is_wrong(gateway, openai_client):
    import openai

    chats = openai_client.chat.completions
    with pytest.raises(openai.NotFoundError) as missing:
        chats.create(model="nobody", messages=TALK)
    with pytest.raises(openai.NotFoundError):
        chats.create(model="base:nobody", messages=TALK, stream=True)
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="context"):
        chats.create(model="base", messages=LONG)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chats.create(model="base", messages=TALK, temperature="hot")
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong").models.list()

    assert missing.value.code == "model_not_found"
