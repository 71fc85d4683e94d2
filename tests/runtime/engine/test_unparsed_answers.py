"""Answers that do not keep to the format that a template promises."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import EngineError
from exporter.core.gguf import read_gguf
from runtime.engine.chat_format import TOOL, chat_format
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import Delta, ask, ask_json
from tests.runtime.gateway.conftest import serving
from tests.support.template_models import CONTEXT, TALKS

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    "{# answers begin with <|channel|> #}"
)


@pytest.fixture(scope="module")
def channels(models, toolchain):
    """An engine that expects channels, as gpt-oss writes them, of a template that names them."""
    chat = chat_format(read_gguf(models["letters"]), CHANNELS)
    with Server(ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat), toolchain) as server:
        yield server


LOOSE = {"max_tokens": 5, "temperature": 0, "logit_bias": [[2, False]]}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_keeps_to_no_format_is_given_as_it_was_written(channels, stream):
    prompt = ask_json(channels, "/apply-template", {"messages": TALKS[0]})["prompt"]
    wanted = ask_json(channels, "/completion", {"prompt": prompt, **LOOSE})["content"]
    if stream:
        pieces = [*ask(channels, TALKS[0], LOOSE)]
        got = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    else:
        body = {"messages": TALKS[0], **LOOSE}
        found = ask_json(channels, "/v1/chat/completions", body)
        got = found["choices"][0]["message"]["content"]

    assert wanted
    assert got.replace("\ufffd", "") == wanted.replace("\ufffd", "")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_such_an_answer_says_that_it_keeps_to_no_format(channels, route, stream):
    body = {"messages": TALKS[0], "input": "the cat", "stream": stream, **LOOSE}
    with channels.post(route, body) as response:
        header, text = response.getheader("X-Decant-Unparsed"), response.read().decode()

    assert header == (None if stream else "1")
    assert '"unparsed":true' in text
    ended = ('_reason":"length"', '_reason":"max_tokens"', '"status":"completed"')
    assert any(why in text for why in ended)


def test_the_gateway_hands_that_on_in_every_api(models, tmp_path):
    template = tmp_path / "channels.jinja"
    template.write_text(CHANNELS)
    body = {"model": "letters", "messages": TALKS[0], "stream": False, **LOOSE}
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            asked = {**body, "options": {"num_predict": 5, "temperature": 0}}
            with served.send("POST", path, asked) as response:
                said = json.loads(response.read())
            assert response.getheader("X-Decant-Unparsed") == "1", said
            assert said.get("unparsed") or said["choices"][0]["unparsed"]


UNREADABLE = "{{ messages | tojson }}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
"""llama.cpp finds no way to read answers to it, and does not start."""


def test_a_template_whose_answers_llama_cpp_cannot_read_is_used_for_plain_ones(
    bases, models, tmp_path
):
    from transformers import AutoTokenizer

    template = tmp_path / "unreadable.jinja"
    template.write_text(UNREADABLE)
    wanted = AutoTokenizer.from_pretrained(bases["letters"]).apply_chat_template(
        TALKS[0], chat_template=UNREADABLE, add_generation_prompt=True, return_dict=False
    )
    body = {"model": "letters", "messages": TALKS[0], "max_tokens": 2}
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        counts = []
        for path in ("/v1/chat/completions", "/v1/messages"):
            status, said = served.ask(path, body)
            assert status == 200, said
            usage = said["usage"]
            cached = usage.get("cache_read_input_tokens", 0)
            counts.append(usage.get("prompt_tokens", cached + usage.get("input_tokens", 0)))
        log = served.log.read_text()

    assert counts == [len(wanted)] * 2
    assert "cannot parse its answers" in log


def test_with_tools_it_stays_an_error(channels):
    body = {"messages": TALKS[0], "tools": [TOOL], **LOOSE}

    with pytest.raises(EngineError, match="does not match the expected"):
        ask_json(channels, "/v1/chat/completions", body)


def test_an_answer_that_keeps_to_its_format_says_nothing(models, toolchain):
    chat = chat_format(read_gguf(models["letters"]))
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat)
    body = {"messages": TALKS[0], **LOOSE}
    with Server(spec, toolchain) as server, server.post("/v1/messages", body) as response:
        assert response.getheader("X-Decant-Unparsed") is None
        assert "unparsed" not in response.read().decode()
