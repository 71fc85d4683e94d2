"""Templates are rendered in a process with little time and memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from exporter.core.errors import ModelError
from exporter.core.events import silent
from exporter.core.gguf import GGUFFile
from exporter.formats.ollama import turns_of
from exporter.inputs import template_process
from exporter.inputs.chat_template import environment
from exporter.inputs.template_process import (
    Rendered,
    RenderJob,
    refuse_runaway,
    render_all,
)
from exporter.verify.metadata import check_template
from exporter.verify.texts import CONVERSATIONS

TALK = ({"role": "user", "content": "Hi"},)
TOOLS = ({"type": "function", "function": {"name": "weather"}},)


def test_each_conversation_gives_its_prompt_or_why_there_is_none():
    template = (
        "{% if tools %}{{ tools | length }} tools{% endif %}{{ bos_token }}"
        "{% if loud is defined %}{{ messages[0].content | upper }}{% endif %}"
        "{% if tools is undefined %}{{ raise_exception('no tools') }}{% endif %}"
    )
    jobs = [
        RenderJob(TALK),
        RenderJob(TALK, tools=TOOLS),
        RenderJob(TALK, variables={"loud": True}),
    ]

    found = render_all(template, {"bos_token": "<s>"}, [*jobs, RenderJob(TALK, has_tools=False)])

    assert [one.text for one in found] == ["<s>", "1 tools<s>", "<s>HI", None]
    assert "no tools" in found[3].refusal


def test_a_template_that_is_no_jinja_is_refused():
    (found,) = render_all("{% for", {}, [RenderJob(TALK)])

    assert (found.text, "cannot be read" in found.refusal) == (None, True)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set x = namespace(y='aaaaaaaa') %}{% for a in range(40) %}"
    "{% set x.y = x.y + x.y %}{% endfor %}{{ x.y }}"
)


@pytest.mark.lasting
@pytest.mark.parametrize("template", [ENDLESS, GROWING], ids=["time", "memory"])
def test_neither_time_nor_memory_is_without_an_end(monkeypatch, template):
    monkeypatch.setattr(template_process, "WALL_S", 3)

    first, second = render_all(template, {}, [RenderJob(TALK), RenderJob(TALK)])

    assert first == second
    assert (first.text, "it takes more than" in first.refusal) == (None, True)


def test_a_prompt_out_of_all_proportion_is_refused():
    (found,) = render_all("{{ 'a' * 2000000 }}", {}, [RenderJob(TALK)])

    assert (found.text, "2000000 characters" in found.refusal) == (None, True)


@pytest.mark.lasting
@pytest.mark.parametrize("template", [ENDLESS, GROWING, "{{ 'a' * 5000000000 }}"])
def test_a_template_that_does_not_end_is_refused_before_it_is_rendered_without_limits(
    monkeypatch, template, tmp_path
):
    """By whatever renders it in a process of its own: verify, and Ollama's TEMPLATE."""
    monkeypatch.setattr(template_process, "WALL_S", 1)
    metadata = {"tokenizer.chat_template": template}
    file = GGUFFile(tmp_path / "m.gguf", 0, metadata, ())
    facts = SimpleNamespace(texts={"bos": "", "eos": ""})
    tokenizer = SimpleNamespace(chat_template=template)

    with pytest.raises(ModelError, match=r"the chat template of `.*m\.gguf` cannot be used"):
        turns_of(file, report=silent)
    with pytest.raises(ModelError, match=r"the chat template of `.*m\.gguf` cannot be used"):
        check_template(file, facts, tokenizer)


def test_a_template_is_tried_once_while_it_is_the_same_and_keeps_to_the_limits(monkeypatch):
    asked = []

    def made(template, tokens, jobs):
        asked.append(template)
        return [Rendered(None, "too much", is_too_much="a" in template) for _ in jobs]

    monkeypatch.setattr(template_process, "render_all", made)
    for template in ("b", "b", "c", "b", "c", "c"):
        refuse_runaway(template)
    for _ in range(2):
        with pytest.raises(ModelError):
            refuse_runaway("a")
    refuse_runaway("c")
    refuse_runaway("c", talks=(TALK,))

    assert asked == ["b", "c", "b", "c", "a", "a", "c"]


def test_a_template_that_could_not_be_tried_is_tried_again(monkeypatch):
    asked = []

    def made(template, tokens, jobs):
        asked.append(template)
        return [Rendered(None, "it could not be tried: no memory") for _ in jobs]

    monkeypatch.setattr(template_process, "render_all", made)
    for _ in range(2):
        refuse_runaway("d")

    assert asked == ["d", "d"]


@pytest.mark.lasting
def test_a_template_that_waits_for_verifys_own_conversation_is_found_out(monkeypatch, tmp_path):
    """And one that jinja2's sandbox refuses is a template that refuses, on both sides."""
    monkeypatch.setattr(template_process, "WALL_S", 1)
    waited = CONVERSATIONS[-1][-1]["content"]
    waits = f"{{% if messages[-1].content == {waited!r} %}}{ENDLESS}{{% endif %}}"
    facts = SimpleNamespace(texts={"bos": "", "eos": ""})

    def checked(template: str):
        file = GGUFFile(tmp_path / "m.gguf", 0, {"tokenizer.chat_template": template}, ())
        return check_template(file, facts, Tokenizer(template))

    with pytest.raises(ModelError, match="cannot be used"):
        checked(waits)
    found = checked("{% for a in range(99999999) %}{% endfor %}")
    assert not found.problems
    assert "it renders no conversation, in transformers neither: Range too big" in found.notes[0]


class Tokenizer:
    """transformers' tokenizer, as far as it renders templates."""

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages, *, chat_template, add_generation_prompt, **others):
        template = environment().from_string(chat_template or self.chat_template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def test_a_long_conversation_may_have_a_long_prompt():
    talk = [{"role": "user", "content": "a" * 1_500_000}]
    (found,) = render_all("{{ messages[0].content }}", {}, [RenderJob(talk)])

    assert found.text == talk[0]["content"]


def test_a_child_that_cannot_run_is_no_fault_of_the_template(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho no module named jinja2 >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(template_process.sys, "executable", str(broken))
    (found,) = render_all("{{ messages }}", {}, [RenderJob(TALK)])

    assert found.text is None
    assert not found.is_too_much
    assert found.refusal == "it could not be tried: no module named jinja2"
