"""Keys that are typed while an answer streams, and windows that change their size then."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading

import pytest

from tests.support.fake_openai import OpenAIServer
from tests.support.repl_chats import events, sessions
from tests.support.terminal import Terminal, chat

pytestmark = pytest.mark.lasting

BEGIN, END = "It begins with this", " and ends with that."
QUESTION = "Which is it?"


@pytest.fixture
def gate() -> threading.Event:
    """Answers are held before their last piece until it is set."""
    return threading.Event()


@pytest.fixture
def server(gate, home):
    with OpenAIServer([BEGIN, END], gate=gate) as server:
        yield server
        gate.set()


@pytest.fixture(params=[60, 120])
def half(request, server):
    """A chat, 60 or 120 columns wide, that has shown one half of an answer."""
    with chat("--url", server.url, columns=request.param) as terminal:
        terminal.ready()
        terminal.send(f"{QUESTION}\r")
        terminal.until(BEGIN)
        yield terminal


def asked(server: OpenAIServer) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.asked]


def test_typed_keys_wait_for_the_next_prompt_unseen(half, server, gate):
    half.send("and noww\x7f?")
    half.look(0.2)
    assert "and now" not in half.text
    gate.set()
    half.until(r"^> and now\?$")

    assert f"> {QUESTION}\n{BEGIN}{END}\n> and now?" in half.text
    half.send("\r")
    half.ready()
    assert asked(server) == [QUESTION, "and now?"]


def test_two_messages_typed_ahead_are_sent_one_after_the_other(half, server, gate):
    half.send("one\rtwo\r")
    half.look(0.2)
    gate.set()
    half.until(rf"> two\n{BEGIN}{END}\n> ?$")

    assert asked(server) == [QUESTION, "one", "two"]
    assert half.text.count(f"{BEGIN}{END}\n") == 3


def test_ctrl_c_stops_the_answer_and_keeps_the_keys(half, server, home):
    half.send("and now?\x03")
    half.until(r"^\(stopped; the answer so far is kept\)$")
    half.until(r"^> and now\?$")

    assert f"{BEGIN}\n(stopped" in half.text
    assert events(*sessions(home))[-1]["is_partial"]


def test_a_text_pasted_meanwhile_is_one_message(half, server, gate):
    assert half.raw.rfind(b"\x1b[?2004h") > half.raw.rfind(b"\x1b[?2004l")  # pastes are marked
    pasted = "\n".join(f"line {number}" for number in range(400))  # more than one read
    half.send(f"\x1b[200~{pasted}\x1b[201~")
    half.look(0.2)
    gate.set()
    half.until(r"line 399$")
    half.send("\r")
    half.until(rf"line 399\n{BEGIN}{END}\n> ?$")

    assert asked(server)[1] == pasted


def test_compare_keeps_the_screen_whole_whatever_happens_meanwhile(half, server, gate):
    gate.set()
    half.ready()
    gate.clear()
    half.send("/compare first second\r")
    half.until(f"1 first .*2 second.*\n{BEGIN}")
    for columns in (44, 100, 70):
        half.send("n\ry")
        half.resize(columns, 24)
        half.signal(signal.SIGWINCH)
        half.look(0.2)
    assert half.text.count(BEGIN) == 1
    assert f"\n{QUESTION}\n" in f"\n{half.text}\n"  # above the columns
    gate.set()
    half.until("n none: ?$")
    above, below = half.text.split("> /compare first second\n")

    assert above.endswith(f"> {QUESTION}\n{BEGIN}{END}\n")
    assert re.sub(r"  +", "  ", below).splitlines() == [
        "1 first  2 second",
        f"{BEGIN} and ends with  {BEGIN} and ends with",
        "that.  that.",
        "keep 1 first, 2 second? Enter: 2, n none:",
    ]


def test_keys_typed_during_compare_do_not_pick_an_answer(half, server, gate, home):
    gate.set()
    half.ready()
    gate.clear()
    half.send("/compare first second\r")
    half.until("1 first")
    half.send("n\rlater")
    gate.set()
    half.until("n none: ?$")
    half.send("1\r")
    half.until(r"\(kept: first\)")
    half.until(r"^> later$")

    assert asked(server)[-1] == "n"


def test_narrow_windows_show_the_compared_answers_below_each_other(half, gate):
    gate.set()
    half.ready()
    gate.clear()
    half.send("/compare first second\r")
    half.until("1 first")
    half.resize(30, 24)
    half.signal(signal.SIGWINCH)
    gate.set()
    half.until("n none:")

    assert re.search(r"1 first\nIt begins .*\nwith that\.\n2 second\nIt begins", half.text)


def test_the_editor_gets_a_terminal_that_echoes(server, gate, tmp_path):
    gate.set()
    editor, modes = tmp_path / "editor", tmp_path / "modes"
    editor.write_text(f"#!/bin/sh\nstty -a > {shlex.quote(str(modes))}; echo > $1 edited\n")
    editor.chmod(0o755)
    with chat("--url", server.url, EDITOR=str(editor)) as terminal:
        terminal.ready()
        terminal.enter(QUESTION)
        terminal.enter("/edit")

    assert asked(server)[-1] == "edited"
    assert re.search(r"(?<!-)\bicanon\b", modes.read_text())
    assert re.search(r"(?<!-)\becho\b", modes.read_text())


def test_the_terminal_is_left_as_it_was(server, gate):
    gate.set()
    command = shlex.join([sys.executable, "-m", "exporter", "chat", "--url", server.url])
    with Terminal(["sh", "-c", f"{command}; stty -a"]) as terminal:
        terminal.ready()
        terminal.enter(QUESTION)
        terminal.send("\x04")
        terminal.wait()

    for mode in ("icanon", "echo", "icrnl"):
        assert re.search(rf"(?<!-)\b{mode}\b", terminal.text)
    assert "-noflsh" in terminal.text
