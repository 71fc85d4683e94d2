"""What llama.cpp learns of a chat template's format, it learns once: `patch.analysis`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exporter.core.gguf import read_gguf
from runtime.engine.chat_format import chat_format
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from runtime.engine.own_template import FIELD
from tests.support.chat_templates import REGULAR
from tests.support.template_models import CONTEXT, TALKS, TEMPLATES

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

DEBUG = ("--log-verbosity", "9")
ANALYZED = "Differential analysis complete"


@pytest.fixture(scope="module")
def talkative(models, toolchain) -> Iterator[Server]:
    """An engine that logs what it does."""
    chat = chat_format(read_gguf(models["letters"]), TEMPLATES["plain"])
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat, extra=DEBUG)
    with Server(spec, toolchain) as server:
        yield server


def analyses(server: Server) -> int:
    """How many templates the engine has analyzed."""
    return server.run_folder.log.read_text(errors="replace").count(ANALYZED)


def test_requests_are_answered_by_what_is_known_of_the_models_template(talkative):
    before = analyses(talkative)
    found = [ask_json(talkative, "/apply-template", {"messages": talk}) for talk in TALKS]
    ask_json(talkative, "/v1/chat/completions", {"messages": TALKS[0], "max_tokens": 1})

    assert before >= 1
    assert analyses(talkative) == before
    assert [one["prompt"].endswith("assistant:") for one in found] == [True] * len(TALKS)


def test_a_template_that_requests_bring_is_analyzed_once_and_apart(talkative):
    def prompt(name: str) -> str:
        own = {"template": REGULAR[name], "bos_token": "<s>", "eos_token": "</s>"}
        body = {"messages": TALKS[0], "chat_template_kwargs": {FIELD: own}}
        return str(ask_json(talkative, "/apply-template", body)["prompt"])

    before, names = analyses(talkative), ("chatml", "headers")
    prompts = [prompt(name) for name in (*names, *names, *names)]

    assert analyses(talkative) == before + len(names)
    assert prompts == prompts[:2] * 3
    assert prompts[0] != prompts[1]
