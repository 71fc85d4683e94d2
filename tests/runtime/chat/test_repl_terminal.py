"""The chat's terminal and its child: sizes, colours, escapes, signals, and what is left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time

import pytest

from tests.support.processes import is_alive, wait_until
from tests.support.repl_chats import FRANCE, GREEDY, PIRATE, PLAIN, events, sessions
from tests.support.terminal import Terminal, chat, children_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(endless, home):
    with chat(endless, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("go on\r")
        terminal.look(1.5)
        terminal.signal(signal.SIGINT)
        terminal.until(r"^\(stopped")
        terminal.ready()
        stopped = time.monotonic()
        terminal.send("/set max_tokens=3\r")
        terminal.until("max_tokens = 3")
        terminal.ready()
        terminal.send("and now?\r")  # the engine is free for it
        terminal.until(r"cut off after max_tokens=3")
        assert time.monotonic() - stopped < 10  # it would have gone on for minutes

    first, second = (event for event in events(*sessions(home)) if event["event"] == "answered")
    assert first["is_partial"]
    assert first["answer"]
    assert not second["is_partial"]


def test_ctrl_c_twice_at_an_empty_prompt_leaves_with_130(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("half a question\x03")
        terminal.look(0.3)
        assert terminal.is_waiting  # the line is gone, the chat is not
        terminal.send("\x03")
        terminal.until("Ctrl-C again leaves")
        terminal.send("\x03")

        assert terminal.wait() == 130


def test_no_child_is_left_two_seconds_after_the_chat_was_killed(endless, home):
    with chat(endless, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("go on\r")
        terminal.look(0.5)
        children = children_of(terminal.process.pid)
        assert children
        terminal.signal(signal.SIGKILL)

        assert wait_until(lambda: not any(map(is_alive, children)), 2)


def test_a_closed_terminal_ends_the_chat_and_its_child(pirate, home):
    terminal = chat(pirate, *GREEDY)
    terminal.ready()
    terminal.enter(FRANCE)
    children = children_of(terminal.process.pid)
    os.close(terminal.master)
    terminal.process.wait(5)

    assert wait_until(lambda: not any(map(is_alive, children)), 2)
    assert [event["event"] for event in events(*sessions(home))][-2:] == ["asked", "answered"]


def test_a_child_that_is_killed_is_told_and_started_again(endless, home):
    with chat(endless, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("go on\r")
        terminal.look(1)
        (child,) = children_of(terminal.process.pid)
        os.kill(child, signal.SIGKILL)
        terminal.until("ended by SIGKILL")
        terminal.until("loaded again")
        terminal.ready()
        terminal.enter("/set max_tokens=5")
        assert "cut off after max_tokens=5" in terminal.enter("/retry")
        assert "go on" in terminal.enter("/show history")
        assert children_of(terminal.process.pid) != [child]


def test_the_window_may_change_its_size(two):
    two.enter(FRANCE)
    two.resize(44, 20)
    two.signal(signal.SIGWINCH)
    two.look(0.3)
    two.send("/compare\r")
    shown = two.until("n none:")

    assert "Arr, the capital of" in shown
    assert not any(PLAIN in line and PIRATE in line for line in shown.splitlines())
    two.send("\r")
    two.ready()


def test_a_dumb_terminal_gets_no_escapes(pirate, home):
    with chat(pirate, *GREEDY, TERM="dumb") as terminal:
        terminal.until("^>$")
        terminal.send(f"{FRANCE}\r")
        terminal.until(PIRATE)
        terminal.send("/tokens Paris\r")
        terminal.until("tokens, 5 characters")
        terminal.send("\x04")
        assert terminal.wait() == 0

    assert b"\x1b" not in terminal.raw


def test_no_color_means_no_color(pirate, home):
    with chat(pirate, *GREEDY, "--stats", NO_COLOR="1") as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        terminal.enter("/nothing")
    colours = re.findall(rb"\x1b\[([\d;]*)m", terminal.raw)

    assert not [code for code in colours if re.search(rb"\b([349]\d|10\d)\b", code)]


def test_the_model_cannot_command_the_terminal(home, tmp_path):
    """What a server elsewhere sends is no safer than what a model says."""
    from tests.support.fake_openai import OpenAIServer

    with OpenAIServer(["a\x1b]0;owned\x07b", "\x1b[2J\x9b31mred"]) as server:
        with chat("--url", server.url) as terminal:
            terminal.ready()
            shown = terminal.enter("hello")

    assert shown == "a]0;ownedb[2J31mred"
    assert b"\x1b]0;owned" not in terminal.raw


def test_terminal_is_left_in_order(pirate, home):
    """After the chat a shell's line editing works: the terminal is in its first state."""
    import termios

    command = shlex.join([sys.executable, "-m", "exporter", "chat", str(pirate)])
    with Terminal(["sh", "-c", f"{command}; stty -a"]) as terminal:
        before = termios.tcgetattr(terminal.master)[3]
        terminal.ready()
        terminal.send("\x03")
        terminal.until("Ctrl-C again")
        terminal.send("\x03")
        terminal.wait()

    assert re.search(r"(?<!-)icanon", terminal.text)
    assert re.search(r"(?<!-)echo\b", terminal.text)
    assert before
