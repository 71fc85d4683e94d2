"""The chat at a terminal, as a person has it: what is typed, and what is answered."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

from tests.support.repl_chats import FRANCE, GREEDY, PIRATE, PLAIN, events, sessions
from tests.support.terminal import chat

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_a_question_is_answered_and_the_next_one_too(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert terminal.enter(FRANCE) == PIRATE
        assert "Arr" in terminal.enter("What does a cow say?")
        terminal.send("\x04")

        assert terminal.wait() == 0


def test_a_block_of_lines_is_one_message(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.send('"""What is the capital\rof France?')
        terminal.until(r"^\.\.\. of France\?$")
        terminal.enter('"""')
        terminal.send("one\x1b\rtwo")  # Alt-Enter
        terminal.until(r"^\.\.\. two$")
        terminal.enter("")

    asked = [event["question"] for event in events(*sessions(home)) if event["event"] == "asked"]
    assert asked == ["What is the capital\nof France?", "one\ntwo"]


def test_what_is_pasted_is_not_sent_line_by_line(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("\x1b[200~first\nsecond\nthird\x1b[201~")
        terminal.until(r"^\.\.\. third$")
        terminal.enter("")

    asked = [event["question"] for event in events(*sessions(home)) if event["event"] == "asked"]
    assert asked == ["first\nsecond\nthird"]


def test_an_editor_opens_with_ctrl_g_and_with_edit(pirate, home, tmp_path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s" "What is the capital of France?" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("x\x07")
        terminal.until(f"^> {re.escape(FRANCE)}$")
        assert terminal.enter("") == PIRATE
        terminal.enter("What does a cow say?")
        terminal.enter("/edit")

    asked = [event.get("question", event["event"]) for event in events(*sessions(home))]
    assert asked[-3:] == ["undone", FRANCE, "answered"]


def test_tab_completes_commands_adapters_and_paths(two):
    two.send("/ada\t")
    two.until(r"^pirate> /adapter")
    two.send(" ba\t")
    two.until(r"^pirate> /adapter base")
    two.send("\x03")
    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for one line
        (Path(folder) / "notes-of-today.txt").write_text("hello")
        two.send(f"/read {folder}/notes\t")
        two.until("notes-of-today.txt")
        assert "goes with your next message" in two.enter("")


def test_numbers_are_told_when_asked_for(two):
    before = two.enter("/stats")
    shown = two.enter(FRANCE)

    assert re.search(r"layers on a GPU: (none|all|about|as many)", before)
    assert re.search(r"memory: .* weights", before)
    assert re.search(r"prompt \d+ tokens.*; answer \d+ tokens at .*first after .* s; pirate", shown)


def test_reasoning_is_dimmed_or_folded(home):
    from tests.support.fake_openai import OpenAIServer

    with OpenAIServer(["Paris."], thoughts=["The user ", "wants a city."]) as server:
        with chat("--url", server.url) as terminal:
            terminal.ready()
            assert terminal.enter("hello") == "The user wants a city.\nParis."
            assert b"\x1b[2mThe user" in terminal.raw
            terminal.enter("/set reasoning=off")
            shown = terminal.enter("again")
            assert "wants" not in shown
            assert shown.endswith("Paris.")
            assert "wants a city." in terminal.enter("/show reasoning")


def test_a_full_context_is_told_and_the_oldest_turns_can_be_left_out(pirate, home):
    with chat(pirate, *GREEDY, "--ctx", "128") as terminal:
        terminal.ready()
        for _ in range(20):
            terminal.send(f"{'Paris ' * 14}\r")
            terminal.look(0.2)
            while not terminal.is_waiting and "Enter leaves it" not in terminal.text:
                terminal.look()
            if "Enter leaves it" in terminal.text:
                break
        assert "the context is full: the conversation has" in terminal.text
        terminal.send("t\r")
        terminal.until(r"oldest turns are left out")
        terminal.ready()

        assert "(left out)" in terminal.enter("/show history")


def test_the_commands_can_be_listed_and_a_typo_is_met_with_the_nearest(two):
    shown = two.enter("/help")
    for name in ("adapter", "compare", "regen", "undo", "export", "attach", "tokens", "copy"):
        assert f"/{name}" in shown
    assert "did you mean /regen?" in two.enter("/regn")
    assert "did you mean temperature?" in two.enter("/set temprature=1")
    assert "cannot be 'hot'" in two.enter("/set temperature=hot")


def test_odd_paths_and_settings_are_told_and_the_chat_goes_on(two, tmp_path):
    for command in (
        "/read",
        "/read ~nosuch/x",
        "/export md ~nosuch/x",
        "/read /dev/zero",
        "/load x",
    ):
        assert "error:" in two.enter(command)
    assert "cannot be 'inf'" in two.enter("/set temperature=inf")
    two.enter("/set reasoning=")
    assert two.enter(FRANCE) == PIRATE


def test_a_message_may_begin_with_a_path(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert "no command" not in terminal.enter("/etc/hosts is what?")


def test_a_template_that_raises_is_told_and_the_chat_goes_on(
    demo_models, toolchain, tmp_path, home
):
    import shutil

    from exporter.export import export
    from exporter.formats.export_request import ExportRequest

    base = tmp_path / "strict"
    shutil.copytree(demo_models.base, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    template = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    original = config.pop("chat_template", None) or (base / "chat_template.jinja").read_text()
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "chat_template.jinja").write_text(template + original)
    output = tmp_path / "strict-Q8_0.gguf"
    export(ExportRequest((), base, ("Q8_0",), (output,)), toolchain)
    with chat(output, *GREEDY) as terminal:
        terminal.ready()
        assert terminal.enter(FRANCE) == PLAIN
        assert "one at a time" in terminal.enter("and of Italy?")
        terminal.enter("/clear")
        assert terminal.enter(FRANCE) == PLAIN


def test_a_picture_for_a_model_that_sees_nothing_is_refused(two, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    assert "takes no images" in two.enter(f"/attach {tmp_path}/a.png")


def test_markdown_is_rendered(home):
    from tests.support.fake_openai import OpenAIServer

    with OpenAIServer(
        ["# Head\n\n", "* one\n* **two", "**\n\n```py\nx = 1\n\ny = 2\n```\n", "end"]
    ) as server:
        with chat("--url", server.url, "--markdown") as terminal:
            terminal.ready()
            shown = terminal.enter("hello")

    assert " • one" in shown
    assert "**" not in shown
    assert "```" not in shown
    assert shown.rstrip().endswith("end")
    assert shown.count("x = 1") == 1
