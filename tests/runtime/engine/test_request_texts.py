"""What is done to a request's texts before llama-server sees them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from exporter.core.gguf import GGUFFile
from exporter.llamacpp.normalizer import NORMALIZER
from runtime.engine.chat_format import AS_IT_IS, ChatFormat
from runtime.engine.request_texts import Front, front_of

DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"
CHAT = "/v1/chat/completions"


@pytest.fixture
def front() -> Front:
    header = GGUFFile(Path("m.gguf"), 0, {NORMALIZER: '{"type": "NFC"}'}, ())
    return front_of(header, AS_IT_IS)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": DECOMPOSED}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": DECOMPOSED}]}]}),
        (CHAT, {"messages": [{"role": "assistant", "reasoning_content": DECOMPOSED}]}),
        ("/v1/messages", {"system": [{"type": "text", "text": DECOMPOSED}], "messages": []}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [
                {"type": "text", "text": DECOMPOSED}]}]}]}),
        ("/v1/responses", {"input": DECOMPOSED, "instructions": DECOMPOSED}),
        ("/v1/completions", {"prompt": [DECOMPOSED, [1, 2]]}),
        ("/completion", {"prompt": [12, DECOMPOSED, 13]}),
        ("/completion", {"prompt": {"prompt_string": DECOMPOSED, "multimodal_data": []}}),
        ("/infill", {"input_prefix": DECOMPOSED, "input_suffix": DECOMPOSED}),
        ("/v1/embeddings", {"input": [DECOMPOSED, DECOMPOSED]}),
        ("/v1/rerank", {"query": DECOMPOSED, "documents": [DECOMPOSED, {"text": DECOMPOSED}]}),
        ("/tokenize", {"content": DECOMPOSED}),
    ],
)  # fmt: skip
def test_texts_are_normalized_wherever_a_route_has_them(front, route, body):
    before = copy.deepcopy(body)

    ready = front.ready(route, body)

    assert body == before
    assert ready == replaced(body)


def replaced(value: Any) -> Any:
    """The same with every text composed."""
    match value:
        case str():
            return value.replace(DECOMPOSED, COMPOSED)
        case list():
            return [replaced(one) for one in value]
        case dict():
            return {name: replaced(one) for name, one in value.items()}
        case _:
            return value


def test_what_no_model_reads_as_a_text_stays_as_it_is(front):
    image = {"type": "image_url", "image_url": {"url": f"data:{DECOMPOSED}"}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": DECOMPOSED}}
    body = {
        "messages": [
            {"role": "user", "content": [image], "name": DECOMPOSED},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "model": DECOMPOSED, "stop": [DECOMPOSED], "tools": [{"description": DECOMPOSED}],
    }  # fmt: skip

    assert front.ready(CHAT, body) == body


def test_without_anything_to_do_a_body_is_the_same():
    body = {"messages": [{"role": "user", "content": DECOMPOSED}], "prompt": DECOMPOSED}

    assert Front().ready(CHAT, body) == body
    assert Front().ready("/completion", body) == body


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_reach_only_a_template_that_knows_them(name):
    header = GGUFFile(Path("m.gguf"), 0, {}, ())
    knows = front_of(header, ChatFormat("{{ message." + name + " }}"))
    does_not = front_of(header, ChatFormat("{{ message.content }}{{ 'I am thinking' }}"))
    body = {"messages": [{"role": "assistant", "content": "Yes", name: "Hm"}]}

    assert knows.ready(CHAT, body) == body
    assert does_not.ready(CHAT, body) == {"messages": [{"role": "assistant", "content": "Yes"}]}
