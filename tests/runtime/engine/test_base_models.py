"""Models without a chat template: they go on writing texts, and are given no other's template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.local import RAW_TOKENS, LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import open_model
from runtime.engine.selection import AdapterSelection
from tests.runtime.gateway.conftest import serving
from tests.support.tiny import make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

QUESTION = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}
PROMPT = {"prompt": "the cat", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def untold(toolchain, tmp_path_factory) -> Path:
    """A base model that was never told how conversations look."""
    folder = tmp_path_factory.mktemp("untold")
    base = make_base(
        folder / "base", hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        max_position_embeddings=512,
    )  # fmt: skip
    settings = base / "tokenizer_config.json"
    said = json.loads(settings.read_text())
    del said["chat_template"]
    settings.write_text(json.dumps(said))
    export(ExportRequest((), base, ("F16",), (folder / "untold.gguf",)), toolchain)
    return folder / "untold.gguf"


@pytest.fixture(scope="module")
def served(untold, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served"), untold) as running:
        yield running


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"]
)
def test_a_conversation_is_refused_with_what_can_be_done(served, path):
    body = {**QUESTION, "model": "untold"}
    if path == "/v1/responses":
        body = {"model": "untold", "input": "the cat"}

    status, said = served.ask(path, body)

    assert status == 400
    assert "has no chat template: it is a base model" in json.dumps(said)
    assert "/v1/completions" in json.dumps(said)
    assert "--chat-template" in json.dumps(said)


def test_texts_are_gone_on_with(served):
    status, said = served.ask("/v1/completions", {**PROMPT, "model": "untold"})
    assert (status, said["usage"]["completion_tokens"]) == (200, 3)

    options = {"num_predict": 3, "temperature": 0}
    body = {"model": "untold", "prompt": "the cat", "stream": False, "options": options}
    status, same = served.ask("/api/generate", body)
    assert (status, same["response"]) == (200, said["choices"][0]["text"])

    status, refused = served.ask("/api/generate", {**body, "system": "Be brief."})
    assert (status, "no place for a system text" in refused["error"]) == (400, True)


def test_chat_goes_on_writing_the_text_and_says_so(served, decant, untold):
    status, said = served.ask("/v1/completions", {**PROMPT, "model": "untold"})
    assert status == 200

    done = decant("chat", untold, "-p", "the cat", "-n", "3", "--temperature", "0", "--json")

    answer = json.loads(done.stdout)
    assert answer["answer"] == said["choices"][0]["text"]
    assert answer["prompt_tokens"] == said["usage"]["prompt_tokens"]
    assert "untold has no chat template: it is a base model" in done.stderr


def test_raw_goes_on_writing_where_there_is_a_template_too(decant, untold):
    asked = ("chat", untold, "-p", "the cat", "-n", "3", "--temperature", "0", "--json")
    wanted = json.loads(decant(*asked).stdout)["prompt_tokens"]

    raw = decant(*asked, "--raw")
    both = decant(*asked, "--raw", "--chat-template", "chatml")

    assert json.loads(raw.stdout)["prompt_tokens"] == wanted
    assert "no chat template" not in raw.stderr
    assert (both.returncode, "leave --chat-template out" in both.stderr) == (2, True)


def test_a_text_that_nothing_ends_has_a_limit(untold):
    engine = LocalEngine(open_model(untold), FitOptions(context=512, threads=1))
    try:
        *_, stopped = engine.answer(
            QUESTION["messages"], {"logit_bias": [[2, False]]}, AdapterSelection()
        )
    finally:
        engine.stop()

    assert (stopped.reason, stopped.tokens) == ("length", RAW_TOKENS)


def test_a_template_can_be_given(decant, untold, tmp_path):
    asked = ("chat", untold, "-p", "the cat", "-n", "1", "--json", "--chat-template")
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ 'a b c d e f g' }}")

    named, own = decant(*asked, "chatml"), decant(*asked, template)
    unknown = decant(*asked, "qwen3")

    assert "no chat template" not in named.stderr
    assert json.loads(named.stdout)["prompt_tokens"] > json.loads(own.stdout)["prompt_tokens"]
    assert unknown.returncode == 3
    assert "there is no chat template 'qwen3'" in unknown.stderr
    assert "Qwen-Qwen3-0.6B" in unknown.stderr


def test_serve_takes_a_template_too(untold, tmp_path):
    with serving(tmp_path, untold, "--chat-template", "chatml") as running:
        status, said = running.ask("/v1/chat/completions", {**QUESTION, "model": "untold"})

    assert status == 200, said
