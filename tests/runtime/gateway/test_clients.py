"""The official Python clients of OpenAI, Anthropic and Ollama, each against a real gateway."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.chat.repl.attachments import read_image
from runtime.engine.llama_server import Server, ServerSpec, lora_vector
from runtime.engine.openai_client import Delta, ask
from runtime.gateway.ollama.ollama_response import Answer, Voice, lines
from tests.runtime.conftest import PROMPTS
from tests.runtime.engine.test_images import make_png
from tests.runtime.gateway.conftest import Served, serving
from tests.support.architectures import make_architecture
from tests.support.raw import edit_json
from tests.support.tiny import make_tokenizer
from tests.support.tiny_t5 import make_t5

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

KEY = "correct-horse-battery-staple"
VOICES = {
    "base": (0.0, 0.0), "base:pirate": (1.0, 0.0), "base:liar": (0.0, 1.0),
    "base:pirate@0.25": (0.25, 0.0),
}  # fmt: skip
PROMPT = PROMPTS[0]
TALK: Any = [{"role": "user", "content": PROMPT}]  # each client has a type of its own for it
LONG: Any = [{"role": "user", "content": "word " * 3000}]
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["age"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}
TEMPLATE = """\
{%- if tools %}<|system|>To call a function, say {"name": its name, "parameters": its arguments}.
{%- for tool in tools %}
{{ tool | tojson }}{% endfor %}{{ eos_token }}{% endif -%}
{%- for message in messages %}
{%- if message.role == "tool" %}<|user|>{{ message.content }}{{ eos_token }}
{%- elif message.tool_calls %}<|assistant|>
{%- for call in message.tool_calls -%}
{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}
{%- endfor %}{{ eos_token }}
{%- else %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
GREEDY = {"temperature": 0, "max_tokens": 24}
OPTIONS = {"temperature": 0, "num_predict": 24}
each_voice = pytest.mark.parametrize("model", VOICES)


@pytest.fixture(scope="module")
def gateway(voices, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    with serving(folder, *voices, "--parallel", "2", "--api-key-file", folder / "key") as found:
        found.wait_until_ready()
        yield found


@pytest.fixture(scope="module")
def expected(demo_base, pirate_lora, liar_lora, toolchain) -> dict[str, str]:
    """What the engine itself answers to PROMPT in each voice, all of them different."""
    spec = ServerSpec(demo_base, 512, threads=1, adapters=(pirate_lora, liar_lora))
    found = {}
    with Server(spec, toolchain) as child:
        for model, voice in VOICES.items():
            pieces = ask(child, TALK, {**GREEDY, **lora_vector(voice)})
            found[model] = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    assert len({found[name] for name in ("base", "base:pirate", "base:liar")}) == 3
    return found


@pytest.fixture(scope="module")
def others(demo_models, toolchain, tmp_path_factory) -> Iterator[Served]:
    """A gateway over the demo's base with a template that knows of tools, a T5, and one that sees.

    The last one's projector is found beside it.
    """
    folder = tmp_path_factory.mktemp("others")
    base = shutil.copytree(demo_models.base, folder / "base")
    edit_json(base / "tokenizer_config.json", chat_template=TEMPLATE)
    paths = [folder / name for name in ("tooled-Q8_0.gguf", "t5-F32.gguf", "seeing-F16.gguf")]
    export(ExportRequest((), base, ("Q8_0",), tuple(paths[:1])), toolchain)
    export(ExportRequest((), make_t5(folder / "t5"), ("F32",), tuple(paths[1:2])), toolchain)
    seeing = make_architecture("gemma3_vlm", folder / "seeing")
    make_tokenizer(seeing)
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (seeing / "preprocessor_config.json").write_text(json.dumps(pictures))
    export(ExportRequest((), seeing, ("F16",), tuple(paths[2:])), toolchain)
    with serving(folder, *paths) as found:
        yield found


def calling(others: Served) -> Any:
    """Asks for a call of a tool, which the model begins as its first token is forced."""
    _, brace = others.ask("/tokenize", {"model": "tooled", "content": "{"})
    return {
        "model": "tooled", "messages": TALK, "temperature": 0, "max_tokens": 100,
        "tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required",
        "parallel_tool_calls": False, "logit_bias": {str(brace["tokens"][-1]): 50},
    }  # fmt: skip


@pytest.fixture(scope="module")
def called_in_pieces(others) -> list[Any]:
    with openai_of(others) as client:
        return list(client.chat.completions.create(**calling(others), stream=True))


@pytest.fixture(scope="module")
def openai_client(gateway) -> Iterator[openai.OpenAI]:
    with openai_of(gateway) as client:
        yield client


def openai_of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{served.url}/v1",
        api_key=KEY,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def anthropic_client(gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic_of(gateway) as client:
        yield client


def anthropic_of(served: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=served.url,
        api_key=KEY,
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def ollama_client(gateway) -> Iterator[ollama.Client]:
    with ollama_of(gateway, KEY) as client:
        yield client


def ollama_of(gateway: Served, key: str) -> ollama.Client:
    return ollama.Client(gateway.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)


# OpenAI


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


def alike(one, other):
    """Whether two vectors are of one text and model, beside other texts or alone.

    4-bit weights meet activations of 8 bits, so that the order of a batch's sums shows.
    """
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other) > 0.9999


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


# Anthropic


@each_voice
def test_anthropic_gets_messages(anthropic_client, expected, model):
    asked: Any = {
        "model": model, "messages": TALK, "max_tokens": 24, "extra_body": {"temperature": 0},
    }  # fmt: skip
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert [block.text for block in whole.content] == [expected[model]]
    assert whole.stop_reason == final.stop_reason == "end_turn"
    assert text == final.content[0].text == expected[model]
    assert final.usage.output_tokens == whole.usage.output_tokens > 3


def test_anthropic_counts_tokens(anthropic_client):
    count = anthropic_client.messages.count_tokens(model="base:pirate", messages=TALK)
    used = anthropic_client.messages.create(model="base:pirate", messages=TALK, max_tokens=1).usage

    assert count.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0) > 5


def test_anthropic_raises_what_is_wrong(anthropic_client):
    messages = anthropic_client.messages
    with pytest.raises(anthropic.NotFoundError) as missing:
        messages.create(model="nobody", messages=TALK, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        messages.create(model="base", messages=TALK, max_tokens=5, extra_body={"max_tokens": "x"})
    with pytest.raises(anthropic.BadRequestError, match="context"):
        messages.create(model="base", messages=LONG, max_tokens=5)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="wrong").messages.count_tokens(
            model="base", messages=TALK
        )

    assert missing.value.body["error"]["type"] == "not_found_error"


# Ollama


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

        return [line async for line in lines(coming(), Answer(Voice("x", "chat"), 0, 0))]

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
    long = ollama_client.embed("base", ["cow " * 600, "cow " * 900])

    assert alike(long.embeddings[0], long.embeddings[1])
    assert long.prompt_eval_count == 2 * 512
    with pytest.raises(ollama.ResponseError) as refused:
        ollama_client.embed("base", "cow " * 600, truncate=False)
    assert refused.value.status_code == 400


def test_ollama_shows_pictures_to_a_model_that_sees(others, tmp_path):
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
    def status(ask) -> tuple[int, str]:
        with pytest.raises(ollama.ResponseError) as error:
            ask()
        return error.value.status_code, error.value.error

    missing = (404, "model 'nobody' not found")
    assert status(lambda: ollama_client.chat("nobody", TALK)) == missing
    assert status(lambda: list(ollama_client.chat("nobody", TALK, stream=True))) == missing
    assert status(lambda: ollama_client.show("nobody")) == missing
    assert status(lambda: ollama_client.embed("nobody", "x")) == missing
    assert status(lambda: ollama_client.chat("base", LONG))[0] == 400
    assert status(lambda: list(ollama_client.chat("base", LONG, stream=True)))[0] == 400
    assert status(lambda: ollama_client.chat("base", TALK, options={"top_k": "x"}))[0] == 400
    assert status(lambda: ollama_client.chat("base", TALK, think=True))[0] == 400
    assert status(lambda: ollama_client.generate("base", "a", suffix="b"))[0] == 501
    with ollama_of(gateway, "wrong") as stranger:
        assert status(stranger.list)[0] == 401


def test_ollamas_asynchronous_client_leaves_in_the_middle(gateway, expected):
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


def test_all_three_are_answered_by_an_encoder_decoder(others):
    prompt = "the vk e a eat o"
    talk: Any = [{"role": "user", "content": prompt}]
    asked: Any = {"model": "t5", "messages": talk, "max_tokens": 12}
    with openai_of(others) as client:
        chats = client.chat.completions
        expected = chats.create(**asked, temperature=0).choices[0].message.content
        pieces = list(chats.create(**asked, temperature=0, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected != ""
    with anthropic_of(others) as client:
        cool = {"temperature": 0}
        assert client.messages.create(**asked, extra_body=cool).content[0].text == expected
        with client.messages.stream(**asked, extra_body=cool) as stream:
            assert "".join(stream.text_stream) == expected
        assert client.messages.count_tokens(model="t5", messages=talk).input_tokens > 5
    with ollama_of(others, KEY) as client:
        options = {"temperature": 0, "num_predict": 12}
        assert client.chat("t5", talk, options=options).message.content == expected
        assert client.generate("t5", prompt, options=options).response == expected
        said = list(client.chat("t5", talk, options=options, stream=True))
        assert "".join(piece.message.content for piece in said) == expected
        assert (said[-1].done_reason, said[-1].eval_count) == ("length", 12)
        with pytest.raises(ollama.ResponseError) as error:
            client.embed("t5", "x")
        assert error.value.status_code == 501


def test_the_version_is_one_of_ollamas(gateway):
    with gateway.send("GET", "/api/version", headers=auth()) as response:
        assert json.loads(response.read())["version"].count(".") == 2
    with gateway.send("HEAD", "/api/version", headers=auth()) as response:
        assert (response.status, response.read()) == (200, b"")


def auth() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}
