"""Ollama's official Python client against a real gateway."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.chat.repl.attachments import read_image
from runtime.gateway.ollama.ollama_response import Answer, LineFormat, lines
from tests.support.official_clients import (
    KEY,
    LONG,
    OPTIONS,
    PROMPT,
    SCHEMA,
    TALK,
    WEATHER,
    alike,
    auth,
    each_voice,
    ollama_of,
    openai_of,
)
from tests.support.png import make_png

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_ollama_lists_the_models(ollama_client, demo_base):
    models = {model.model: model for model in ollama_client.list().models}

    assert set(models) == {"base", "base:pirate", "base:liar"}
    assert models["base"].size == demo_base.stat().st_size < models["base:pirate"].size
    assert models["base:pirate"].details.parent_model == "base"
    assert models["base"].details.quantization_level == "Q4_K_M"
    assert len({model.digest for model in models.values()}) == 3


def test_ollama_shows_a_model_but_not_where_it_lies(ollama_client, gateway, demo_base):
    shown = ollama_client.show("base:pirate:latest")

    assert shown.details.family == "llama"
    assert shown.modelinfo["llama.context_length"] == 512
    assert "message['role']" in shown.template
    assert shown.capabilities == ["completion"]
    with gateway.send("POST", "/api/show", {"model": "base"}, auth()) as response:
        text = response.read().decode()
    assert '"model_info"' in text
    for part in demo_base.parts[1:-1]:
        assert part not in text


def test_ollama_is_told_what_is_loaded(ollama_client, toolchain):
    ollama_client.chat("base:pirate", [])
    (model, *_) = [model for model in ollama_client.ps().models if model.model == "base"]

    assert model.size > 0
    assert model.size_vram == (0 if toolchain.info["backend"] == "cpu" else model.size)
    assert model.context_length == 512
    assert model.expires_at.year >= 2026


@each_voice
def test_ollama_chats(ollama_client, expected, model):
    whole = ollama_client.chat(model, TALK, options=OPTIONS)
    *pieces, last = ollama_client.chat(f"{model}:latest", TALK, options=OPTIONS, stream=True)

    assert whole.message.content == expected[model]
    assert (whole.model, whole.done, whole.done_reason) == (model, True, "stop")
    assert "".join(piece.message.content for piece in pieces) == expected[model]
    assert len(pieces) > 3
    assert (last.model, last.done_reason) == (f"{model}:latest", "stop")
    assert whole.eval_count == last.eval_count > 3
    assert whole.prompt_eval_count == last.prompt_eval_count > 5
    assert 0 < whole.eval_duration < whole.total_duration


@each_voice
def test_ollama_generates(ollama_client, expected, model):
    whole = ollama_client.generate(model, PROMPT, options=OPTIONS)
    pieces = list(ollama_client.generate(model, PROMPT, options=OPTIONS, stream=True))

    assert whole.response == expected[model]
    assert "".join(piece.response for piece in pieces) == expected[model]
    assert pieces[-1].done


def test_ollama_goes_on_with_a_raw_text_as_openai_does(ollama_client, openai_client):
    raw = ollama_client.generate(
        "base:pirate", "The capital of", raw=True, options={"temperature": 0, "num_predict": 8}
    )
    completed = openai_client.completions.create(
        model="base:pirate", prompt="The capital of", temperature=0, max_tokens=8
    )

    assert raw.response == completed.choices[0].text


def test_ollama_gets_json_by_a_schema_and_likely_tokens(ollama_client):
    answer = ollama_client.chat("base", TALK, format=SCHEMA, options={"temperature": 0})
    plain = ollama_client.generate("base", PROMPT, format="json", options=OPTIONS)
    likely = ollama_client.chat("base", TALK, logprobs=True, top_logprobs=2, options=OPTIONS)

    assert 1 <= json.loads(answer.message.content)["age"] <= 9
    assert isinstance(json.loads(plain.response), dict)
    assert "".join(one.token for one in likely.logprobs) == likely.message.content
    assert all(len(one.top_logprobs) == 2 for one in likely.logprobs)


def test_ollama_is_told_of_tools_called_and_tells_what_they_gave(others, called_in_pieces):
    """Its own requests leave it to the model whether it calls one; the demo's never does."""
    import ollama

    stream = "".join(f"data: {piece.model_dump_json()}\n\n" for piece in called_in_pieces)
    *_, line, last = lines_of(stream.encode())
    (call,) = ollama.ChatResponse(**line).message.tool_calls
    model, tools = "tooled", [{"type": "function", "function": WEATHER}]
    given = [*TALK, line["message"], {"role": "tool", "tool_name": "weather", "content": "rain"}]
    with ollama_of(others, KEY) as client:
        shown = client.show(model)
        answer = client.chat(model, given, tools=tools, options={"num_predict": 1})
        plain = client.chat(model, TALK, options={"num_predict": 1})

    assert "tools" in shown.capabilities
    assert call.function.name == "weather"
    assert call.function.arguments["city"] in ("Paris", "Rome")
    assert last["done_reason"] == "stop"
    assert answer.prompt_eval_count > plain.prompt_eval_count + 100


def lines_of(stream: bytes) -> list[dict[str, Any]]:
    async def gathered() -> list[dict[str, Any]]:
        async def coming() -> AsyncIterator[bytes]:
            yield stream

        return [line async for line in lines(coming(), Answer(LineFormat("x", "chat"), 0, 0))]

    return asyncio.run(gathered())


def test_ollama_gets_vectors_of_length_one(ollama_client, openai_client):
    found = ollama_client.embed("base:pirate", ["a cow", "Rome"])
    short = ollama_client.embed("base:pirate", "Rome", dimensions=8)
    old = ollama_client.embeddings("base:pirate", "Rome")
    same = openai_client.embeddings.create(model="base:pirate", input="Rome").data[0].embedding

    assert [math.hypot(*vector) for vector in found.embeddings] == pytest.approx([1, 1])
    assert alike(found.embeddings[1], same)
    assert alike(old.embedding, same)
    assert len(short.embeddings[0]) == 8
    assert math.hypot(*short.embeddings[0]) == pytest.approx(1)
    assert found.prompt_eval_count > 3
    assert ollama_client.embed("base:pirate", "").embeddings == []


def test_ollama_has_long_texts_cut_unless_it_says_otherwise(ollama_client):
    """The demo's model takes 512 tokens; each of these words is one or more."""
    import ollama

    long = ollama_client.embed("base", ["cow " * 600, "cow " * 900])

    assert alike(long.embeddings[0], long.embeddings[1])
    assert long.prompt_eval_count == 2 * 512
    with pytest.raises(ollama.ResponseError) as refused:
        ollama_client.embed("base", "cow " * 600, truncate=False)
    assert refused.value.status_code == 400


def test_ollama_shows_pictures_to_a_model_that_sees(others, tmp_path):
    import ollama

    picture = make_png(tmp_path / "a.png")
    few = {"num_predict": 1}
    blind: Any = [{"role": "user", "content": "what is it?"}]
    talk: Any = [{**blind[0], "images": [picture.read_bytes()]}]
    parts: Any = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": read_image(picture).url}},
    ]
    with ollama_of(others, KEY) as client, openai_of(others) as reference:
        without = client.chat("seeing", blind, options=few).prompt_eval_count
        seen = client.chat("seeing", talk, options=few).prompt_eval_count
        alike = client.generate("seeing", "what is it?", images=[picture], options=few)
        same = reference.chat.completions.create(
            model="seeing", messages=[{"role": "user", "content": parts}], max_tokens=1
        )
        assert client.show("seeing").capabilities == ["completion", "vision"]
        with pytest.raises(ollama.ResponseError, match="cannot see") as refused:
            client.chat("tooled", talk, options=few)

    assert seen == alike.prompt_eval_count == same.usage.prompt_tokens > without + 4
    assert refused.value.status_code == 400


def test_ollama_loads_and_unloads(ollama_client):
    assert ollama_client.generate("base").done_reason == "load"
    assert ollama_client.chat("base", [], keep_alive="5m").done_reason == "load"
    assert "base" in [model.model for model in ollama_client.ps().models]
    assert ollama_client.generate("base", keep_alive=0).done_reason == "unload"
    assert "base" not in [model.model for model in ollama_client.ps().models]


def test_ollama_neither_pulls_nor_pushes_nor_makes_nor_deletes(ollama_client, tmp_path):
    import ollama

    (tmp_path / "blob").write_bytes(b"\x00" * (20 << 20))
    for refused in (
        lambda: ollama_client.pull("llama3"),
        lambda: list(ollama_client.pull("llama3", stream=True)),
        lambda: ollama_client.push("base"),
        lambda: ollama_client.create("mine", from_="base"),
        lambda: ollama_client.copy("base", "mine"),
        lambda: ollama_client.delete("base"),
        lambda: ollama_client.create_blob(tmp_path / "blob"),
    ):
        with pytest.raises(ollama.ResponseError) as error:
            refused()
        assert error.value.status_code == 501
        assert len(error.value.error) > 20


def test_ollama_raises_what_is_wrong(gateway, ollama_client):
    import ollama

    def status(ask) -> tuple[int, str]:
        with pytest.raises(ollama.ResponseError) as error:
            ask()
        return error.value.status_code, error.value.error

    missing = (404, "model 'nobody' not found")
    assert status(lambda: ollama_client.chat("nobody", TALK)) == missing
    assert status(lambda: list(ollama_client.chat("nobody", TALK, stream=True))) == missing
    assert status(lambda: ollama_client.show("nobody")) == missing
    assert status(lambda: ollama_client.embed("nobody", "x")) == missing
    near = (404, "model 'bas' not found; did you mean 'base'?")
    assert status(lambda: ollama_client.show("bas")) == near
    assert status(lambda: ollama_client.chat("base", LONG))[0] == 400
    assert status(lambda: list(ollama_client.chat("base", LONG, stream=True)))[0] == 400
    assert status(lambda: ollama_client.chat("base", TALK, options={"top_k": "x"}))[0] == 400
    assert status(lambda: ollama_client.chat("base", TALK, think=True))[0] == 400
    assert status(lambda: ollama_client.generate("base", "a", suffix="b"))[0] == 501
    with ollama_of(gateway, "wrong") as stranger:
        assert status(stranger.list)[0] == 401


def test_ollamas_asynchronous_client_leaves_in_the_middle(gateway, expected):
    import ollama

    async def left_early() -> tuple[str, str]:
        client = ollama.AsyncClient(gateway.url, headers=auth(), trust_env=False)
        stream = await client.chat("base", TALK, stream=True, options=OPTIONS)
        async for piece in stream:
            first = piece.message.content
            break
        await stream.aclose()
        answer = await client.chat("base:liar", TALK, options=OPTIONS)
        await client._client.aclose()
        return first, answer.message.content

    first, answer = asyncio.run(left_early())

    assert first
    assert expected["base"].startswith(first)
    assert answer == expected["base:liar"]
