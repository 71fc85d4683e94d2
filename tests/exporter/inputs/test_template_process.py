"""Templates are rendered in a process with little time and memory."""

from __future__ import annotations

import pytest

from exporter.inputs import template_process
from exporter.inputs.template_process import Job, render_all

TALK = ({"role": "user", "content": "Hi"},)
TOOLS = ({"type": "function", "function": {"name": "weather"}},)


def test_each_conversation_gives_its_prompt_or_why_there_is_none():
    template = (
        "{% if tools %}{{ tools | length }} tools{% endif %}{{ bos_token }}"
        "{% if loud is defined %}{{ messages[0].content | upper }}{% endif %}"
        "{% if tools is undefined %}{{ raise_exception('no tools') }}{% endif %}"
    )
    jobs = [Job(TALK), Job(TALK, tools=TOOLS), Job(TALK, variables={"loud": True})]

    found = render_all(template, {"bos_token": "<s>"}, [*jobs, Job(TALK, has_tools=False)])

    assert [one.text for one in found] == ["<s>", "1 tools<s>", "<s>HI", None]
    assert "no tools" in found[3].refusal


def test_a_template_that_is_no_jinja_is_refused():
    (found,) = render_all("{% for", {}, [Job(TALK)])

    assert (found.text, "cannot be read" in found.refusal) == (None, True)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set x = namespace(y='aaaaaaaa') %}{% for a in range(40) %}"
    "{% set x.y = x.y + x.y %}{% endfor %}{{ x.y }}"
)


@pytest.mark.parametrize("template", [ENDLESS, GROWING], ids=["time", "memory"])
def test_neither_time_nor_memory_is_without_an_end(monkeypatch, template):
    monkeypatch.setattr(template_process, "WALL_S", 3)

    first, second = render_all(template, {}, [Job(TALK), Job(TALK)])

    assert first == second
    assert (first.text, "it takes more than" in first.refusal) == (None, True)


def test_a_prompt_out_of_all_proportion_is_refused():
    (found,) = render_all("{{ 'a' * 2000000 }}", {}, [Job(TALK)])

    assert (found.text, "2000000 characters" in found.refusal) == (None, True)
