"""Requests that make no sense: the client is told so, as its API tells it, and no engine dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from runtime.gateway.api_errors import form_of
from tests.runtime.gateway.conftest import Served, serving
from tests.support.gateway_paths import asked_of_models

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

HI = [{"role": "user", "content": "hi"}]
LONG = "Paris " * 3000
PNG = "data:image/png;base64,AAAA"
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]
SOURCE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
ROUTES = asked_of_models()
NO_JSON = {
    "nothing": b"",
    "half": b'{"model": "x", "messages": [',
    "more behind": b"{} {}",
    "bytes that are no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a number beyond all": b'{"temperature": 1e400}',
    "an integer beyond all": b'{"seed": ' + b"9" * 400 + b"}",
    "no number": b'{"temperature": NaN}',
    "half of a pair": b'{"prompt": "\\ud800", "messages": [], "input": "a", "content": "a"}',
    "lists in lists": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list": b"[1, 2]",
    "a text": b'"hello"',
    "null": b"null",
}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"messages": "hi"}),
    ("/v1/chat/completions", {"messages": [5]}),
    ("/v1/chat/completions", {"messages": [[]]}),
    ("/v1/chat/completions", {"messages": [{}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "no"}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/chat/completions", {"messages": PICTURE}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": -5}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": "4"}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": [4]}),
    ("/v1/chat/completions", {"messages": HI, "n": 10**9}),
    ("/v1/chat/completions", {"messages": HI, "n": 0}),
    ("/v1/chat/completions", {"messages": HI, "n": 1e18}),
    ("/v1/chat/completions", {"messages": HI, "stream": "yes"}),
    ("/v1/chat/completions", {"messages": HI, "temperature": "hot"}),
    ("/v1/chat/completions", {"messages": HI, "temperature": {}}),
    ("/v1/chat/completions", {"messages": HI, "tools": "x"}),
    ("/v1/chat/completions", {"messages": HI, "tools": [{"type": "function"}]}),
    ("/v1/chat/completions", {"messages": HI, "grammar": "root ::= ("}),
    ("/v1/chat/completions", {"messages": HI, "response_format": {"type": "sound"}}),
    ("/v1/completions", {}),
    ("/v1/completions", {"prompt": 5}),
    ("/v1/completions", {"prompt": []}),
    ("/v1/completions", {"prompt": [99_999_999]}),
    ("/v1/completions", {"prompt": [-5]}),
    ("/v1/completions", {"prompt": [5] * 600}),
    ("/completion", {"prompt": [[5] * 600, "a"]}),
    ("/v1/completions", {"prompt": {"prompt_string": 5}}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": "all"}),
    ("/completion", {"prompt": "a", "echo": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": {"prompt_string": "a", "multimodal_data": ["AAAA"]}}),
    ("/completion", {"prompt": "a", "n_predict": -5}),
    ("/completion", {"prompt": "a", "n_probs": "all"}),
    ("/completion", {"prompt": "a", "json_schema": {"type": "boolean"}, "ignore_eos": True}),
    ("/v1/completions", {"prompt": "a", "grammar": 'root ::= "a"', "ignore_eos": True}),
    ("/v1/responses", {}),
    ("/v1/responses", {"input": 5}),
    ("/v1/responses", {"input": LONG}),
    ("/v1/responses", {"input": "a", "previous_response_id": "x"}),
    ("/v1/embeddings", {}),
    ("/v1/embeddings", {"input": 5}),
    ("/v1/embeddings", {"input": []}),
    ("/v1/embeddings", {"input": [5.5]}),
    ("/v1/embeddings", {"input": [99_999_999]}),
    ("/v1/embeddings", {"input": LONG}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "x"}),
    (
        "/v1/embeddings",
        {"input": [{"content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
    ),
    ("/v1/messages", {"messages": HI}),
    ("/v1/messages", {"max_tokens": 4}),
    ("/v1/messages", {"messages": HI, "max_tokens": 0}),
    ("/v1/messages", {"messages": HI, "max_tokens": -1}),
    ("/v1/messages", {"messages": HI, "max_tokens": True}),
    ("/v1/messages", {"messages": HI, "max_tokens": "4"}),
    ("/v1/messages", {"messages": [5], "max_tokens": 4}),
    ("/v1/messages", {"messages": [{"role": "user", "content": 5}], "max_tokens": 4}),
    ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}),
    (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}],
            "max_tokens": 4,
        },
    ),
    ("/v1/messages/count_tokens", {}),
    ("/v1/messages/count_tokens", {"messages": 5}),
    ("/tokenize", {"content": 5}),
    ("/tokenize", {"content": {}}),
    ("/detokenize", {"tokens": 5}),
    ("/detokenize", {"tokens": ["a"]}),
    ("/detokenize", {"tokens": [99_999_999, -4]}),
    ("/apply-template", {}),
    ("/apply-template", {"messages": 5}),
]


@pytest.fixture(scope="module")
def gateway(pirate, tmp_path_factory) -> Iterator[Served]:
    arguments = (pirate, "--parallel", "2", "--ctx", "512", "--threads", "1")
    with serving(tmp_path_factory.mktemp("bad"), *arguments) as found:
        found.wait_until_ready()
        yield found


@pytest.fixture
def engines(gateway) -> Iterator[list[int]]:
    """None of those that run when a test begins may be gone when it ends."""
    before = gateway.children()
    yield before
    assert set(before) <= set(gateway.children())


def is_told(path: str, body: Any) -> bool:
    """Whether an error has the form that clients of this API read."""
    match form_of(path):
        case "ollama":
            return set(body) == {"error"} and isinstance(body["error"], str)
        case "anthropic":
            return body["type"] == "error" and set(body["error"]) == {"type", "message"}
        case "openai":
            error = body["error"]
            return isinstance(error["message"], str) and isinstance(error["type"], str)


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_no_json_object_is_refused_everywhere(path, gateway, engines):
    found = {name: gateway.ask(path, body) for name, body in NO_JSON.items()}

    # a text that is no Unicode may be seen after what the model cannot do
    assert {name: status for name, (status, _) in found.items() if status not in (400, 501)} == {}
    assert all(is_told(path, body) for _, body in found.values())


@pytest.mark.parametrize("path", ROUTES)
def test_an_unknown_model_is_not_found(path, gateway, engines):
    body = {"model": "nobody", "messages": HI, "max_tokens": 4, "prompt": "a", "input": "a",
            "query": "a", "documents": ["a"], "input_prefix": "a", "input_suffix": "a"}  # fmt: skip
    status, told = gateway.ask(path, body)

    assert status == 404
    assert is_told(path, told)


@pytest.mark.parametrize(("path", "body"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_answered_is_the_clients_fault(path, body, gateway, engines):
    status, told = gateway.ask(path, body)

    assert status == 400, told
    assert is_told(path, told)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ],
)
def test_what_this_model_cannot_do_is_said(path, body, gateway, engines):
    status, told = gateway.ask(path, body)

    assert status == 501
    assert is_told(path, told)


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_a_way_of_sampling_that_ends_the_engine_cannot_be_asked_for(path, gateway, engines):
    body = {"prompt": "hi", "backend_sampling": True, "top_k": 10**9, "max_tokens": 2}
    status, told = gateway.ask(path, body | {"n_predict": 2})

    assert status == 200, told


def test_after_all_that_it_still_answers(gateway):
    for path, body in WRONG:
        gateway.ask(path, body)

    assert gateway.says(gateway.models[0], "What does a cow say?")
    assert gateway.metric("decant_child_restarts_total") == 0
