"""A template's switches stand as transformers leaves them, whichever API asks."""

from __future__ import annotations

import pytest

from exporter.core.gguf import read_gguf
from runtime.engine.chat_format import TOOL, chat_format
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from runtime.engine.request_texts import front_of
from runtime.gateway.ollama.ollama_request import Ability, chat_question, generate_question
from tests.runtime.gateway.conftest import serving
from tests.support.template_models import CONTEXT, TALKS, THINKING, Json

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.fixture(scope="module")
def switched(bases, models, toolchain):
    """A model whose template has switches: gives the engine's prompt, and transformers'."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases["letters"])
    header = read_gguf(models["letters"])
    chat = chat_format(header, THINKING)
    front = front_of(header, chat)
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat)
    with Server(spec, toolchain) as server:

        def both(body: Json, **switches: object) -> tuple[str, str]:
            found = ask_json(server, "/apply-template", front.ready("/apply-template", body))
            wanted = tokenizer.apply_chat_template(
                TALKS[0], chat_template=THINKING, add_generation_prompt=True, tokenize=False,
                **switches,
            )  # fmt: skip
            return found["prompt"], str(wanted)

        yield both


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("asked", "switches"),
    [
        ({}, {}),
        ({"chat_template_kwargs": ON}, ON),
        ({"chat_template_kwargs": OFF}, OFF),
        ({"chat_template_kwargs": {"date_string": "today"}}, {"date_string": "today"}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, ON),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": OFF}, OFF),
        ({"reasoning_effort": "none"}, OFF),
        ({"reasoning": {"effort": "none"}}, OFF),
        ({"reasoning_effort": "low"}, {}),
    ],
)
def test_a_switch_stands_as_transformers_leaves_it_unless_a_request_says_otherwise(
    switched, asked, switches
):
    got, wanted = switched({"messages": TALKS[0], **asked}, **switches)

    assert got == wanted.removeprefix("<s>" if got[:3] != "<s>" else "")


@pytest.mark.parametrize(("think", "switches"), [(None, {}), (True, ON), (False, OFF)])
def test_ollamas_think_is_the_templates_switch(switched, think, switches):
    model = Ability("m", CONTEXT, thinks=True)
    said = {"think": think, "messages": TALKS[0]}
    asked = chat_question(said, model).body
    same = generate_question({"think": think, "prompt": TALKS[0][0]["content"]}, model).body

    got, wanted = switched(asked, **switches)

    assert asked["messages"] == same["messages"]
    assert got == wanted.removeprefix("<s>" if got[:3] != "<s>" else "")


def test_every_api_gives_the_model_the_same_prompt(bases, models, tmp_path):
    from transformers import AutoTokenizer

    template = tmp_path / "own.jinja"
    template.write_text(THINKING)
    tokenizer = AutoTokenizer.from_pretrained(bases["letters"])
    question = {"role": "user", "content": "cafe\u0301 </s> the cat"}
    few = {"num_predict": 1}

    def wanted(**switches: object) -> int:
        ids = tokenizer.apply_chat_template(
            [question], chat_template=THINKING, add_generation_prompt=True, return_dict=False,
            **switches,
        )  # fmt: skip
        return len(ids)

    def told(path: str, **body: object) -> int:
        status, said = served.ask(path, {"model": "letters", "max_tokens": 1, **body})
        assert status == 200, said
        usage = said.get("usage", {})
        counts = [usage.get("prompt_tokens"), said.get("prompt_eval_count")]
        if "cache_read_input_tokens" in usage:
            counts.append(usage["input_tokens"] + usage["cache_read_input_tokens"])
        return int(next(count for count in counts if count is not None))

    assert wanted() != wanted(**ON)
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        chat, text = {"messages": [question]}, question["content"]
        plain = {"options": few, "stream": False}
        budget = {"type": "enabled", "budget_tokens": 1024}
        for path, body, switched in (
            ("/v1/chat/completions", chat, {"chat_template_kwargs": ON}),
            ("/v1/messages", chat, {"thinking": budget}),
            ("/api/chat", {**chat, **plain}, {"think": True}),
            ("/api/generate", {"prompt": text, **plain}, {"think": True}),
        ):
            assert told(path, **body) == wanted(), path
            assert told(path, **body, **switched) == wanted(**ON), path
