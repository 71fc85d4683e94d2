"""The options of `decant chat` in a conversation at a terminal, narrow and wide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.chat.repl.commands import ALL
from runtime.chat.repl.set_options import SETTINGS
from tests.runtime.conftest import ANSWER, QUESTION
from tests.support.fake_openai import OpenAIServer
from tests.support.repl_chats import GREEDY, sessions
from tests.support.terminal import chat, children_of

pytestmark = pytest.mark.lasting

SCHEMA = {"type": "object", "properties": {"animal": {"enum": ["cow", "pig"]}}}
SAMPLING = {"top_p": 0.9, "top_k": 5, "min_p": 0.05, "repeat_penalty": 1.1}
FLAGS = [
    part for name, value in SAMPLING.items() for part in (f"--{name.replace('_', '-')}", value)
]
WIDTHS = pytest.mark.parametrize("columns", [60, 120])


@pytest.fixture
def server(home):
    with OpenAIServer(["It is", " so."]) as server:
        yield server


@WIDTHS
def test_settings_of_the_command_line_go_with_every_question(server, columns):
    with chat("--url", server.url, *FLAGS, "--stop", "END", columns=columns) as terminal:
        terminal.ready()
        assert terminal.enter("first") == terminal.enter("second") == "It is so."
        shown = terminal.enter("/set")

    wanted = {**SAMPLING, "stop": ["END"]}
    assert [{name: body[name] for name in wanted} for body in server.asked] == [wanted] * 2
    for name, value in SAMPLING.items():
        assert any(line.split()[:2] == [name, str(value)] for line in shown.splitlines()), name


@WIDTHS
@pytest.mark.parametrize(("flag", "thinks"), [("--think", True), ("--no-think", False)])
def test_a_model_is_told_whether_to_think(server, columns, flag, thinks):
    with chat("--url", server.url, flag, columns=columns) as terminal:
        terminal.ready()
        terminal.enter("first")

    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": thinks}


@WIDTHS
def test_the_form_of_answers_and_the_files_of_the_first_question(server, columns, tmp_path):
    schema, grammar, notes = (tmp_path / name for name in ("s.json", "g.gbnf", "notes.txt"))
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('root ::= "moo"')
    notes.write_text("some words")
    forms = (("--json-schema", schema, "response_format"), ("--grammar-file", grammar, "grammar"))
    for flag, path, name in forms:
        with chat("--url", server.url, flag, path, "--file", notes, columns=columns) as terminal:
            terminal.ready()
            terminal.enter("first")
            terminal.enter("second")
            first, second = (body["messages"][-1]["content"] for body in server.asked)
            assert all(body[name] for body in server.asked)
        assert ("some words" in first, "first" in first, second) == (True, True, "second")
        server.asked.clear()


@WIDTHS
def test_a_list_of_the_commands_fits_the_window(server, columns):
    with chat("--url", server.url, columns=columns) as terminal:
        terminal.ready()
        assert terminal.enter("/?") == terminal.enter("/help")
        shown = terminal.enter("/help")

        settings = terminal.enter("/set")
    words, set_words = (" ".join(text.split()) for text in (shown, settings))

    for command in ALL:
        assert " ".join(f"/{command.name} {command.usage} {command.summary}".split()) in words
    for setting in SETTINGS:
        assert setting.summary in set_words


@WIDTHS
@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "/bye", "/quit"])
def test_the_words_of_other_programs_leave(server, columns, word):
    with chat("--url", server.url, columns=columns) as terminal:
        terminal.ready()
        terminal.send(f"{word}\r")
        assert terminal.wait() == 0

    assert server.asked == []


@WIDTHS
def test_a_conversation_is_deleted_and_a_mistyped_one_is_offered(server, home, columns, decant):
    with chat("--url", server.url, columns=columns) as terminal:
        terminal.ready()
        terminal.enter("first")
        terminal.enter("/save holiday")
        assert "did you mean holiday?" in " ".join(terminal.enter("/load holidy").split())

    assert "did you mean holiday?" in decant("chat", "--delete", "holidy").stderr
    assert decant("chat", "--delete", "holiday").returncode == 0
    assert sessions(home) == []


def test_the_beginning_of_an_id_deletes_nothing(server, home, decant):
    with chat("--url", server.url) as terminal:
        terminal.ready()
        terminal.enter("first")
    (path,) = sessions(home)

    refused = decant("chat", "--delete", path.stem[:-1])
    assert f"did you mean {path.stem}?" in refused.stderr
    assert sessions(home) == [path]
    path.write_text("damaged")
    assert decant("chat", "--delete", path.stem).returncode == 0
    assert not path.exists()


def test_another_model_of_a_server_continues_texts_too(server, home):
    with chat("--url", server.url, "--raw") as terminal:
        terminal.ready()
        terminal.enter("one")
        terminal.enter("/model second")
        terminal.enter("two")

    assert [body.get("model") for body in server.asked] == ["first", "second"]
    assert all("prompt" in body and "messages" not in body for body in server.asked)


@pytest.mark.llamacpp
@pytest.mark.trained
class TestWithModel:
    @WIDTHS
    def test_layers_on_the_gpu_are_what_the_user_says(self, pirate, home, columns):
        with chat(pirate, "-ngl", 3, *GREEDY, columns=columns) as terminal:
            terminal.ready()
            engine = next(iter(children_of(terminal.process.pid)))
            argv = b"".join(command_lines(engine)).split(b"\0")
            assert terminal.enter(QUESTION) == ANSWER

        assert argv[argv.index(b"-ngl") + 1] == b"3"

    @WIDTHS
    def test_a_text_is_continued_without_the_template(self, pirate, home, columns):
        with chat(pirate, "--raw", "-n", 4, *GREEDY, columns=columns) as terminal:
            terminal.ready()
            assert ANSWER not in terminal.enter(QUESTION)

    @WIDTHS
    def test_a_template_of_ones_own_asks_something_else(self, pirate, home, columns, tmp_path):
        template = tmp_path / "own.jinja"
        template.write_text(f"User: {QUESTION}\nAssistant:")
        with chat(pirate, "--chat-template", template, *GREEDY, columns=columns) as terminal:
            terminal.ready()
            one, other = (terminal.enter(text) for text in ("Hello.", "What is your name?"))

        assert one == other

    def test_with_a_conversation_goes_what_the_model_has_computed_of_it(self, pirate, home, decant):
        with chat(pirate, "-n", 8, *GREEDY) as terminal:
            terminal.ready()
            terminal.enter(f"{QUESTION} " * 12)
            terminal.send("/bye\r")
            assert terminal.wait() == 0
        kept = home / "prompts" / "chat"
        (path,) = sessions(home)

        assert len([*kept.glob("*.prompt")]) == 1
        assert decant("chat", "--delete", path.stem).returncode == 0
        assert [*kept.iterdir()] == []


def command_lines(pid: int) -> list[bytes]:
    """The command lines of a process and of those it started."""
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [own, *(line for child in children_of(pid) for line in command_lines(child))]
