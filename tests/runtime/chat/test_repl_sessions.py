"""Sessions of the chat at a terminal: what it saves, and how it continues them."""

from __future__ import annotations

import json
import re
import signal
import stat

import pytest

from tests.support.repl_chats import FRANCE, GREEDY, PIRATE, events, sessions
from tests.support.terminal import chat

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_the_history_is_there_again_and_private(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert terminal.enter(FRANCE) == PIRATE
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("\x1b[A")  # up
        terminal.until(f"^> {re.escape(FRANCE)}$")
        assert terminal.enter("") == PIRATE
    history = home / "chat-history"

    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "chats").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in sessions(home)} == {0o600}
    assert len(sessions(home)) == 2


def test_a_session_goes_on_after_the_chat_was_killed(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        terminal.enter("/set seed=7")
        terminal.signal(signal.SIGKILL)
        terminal.process.wait()
    with sessions(home)[0].open("a") as file:
        file.write('{"event": "asked", "quest')  # and its last event was half written
    with chat("--continue", pirate) as terminal:
        terminal.ready()
        assert PIRATE in terminal.text
        assert FRANCE in terminal.enter("/show history")
        assert "7" in next(
            line for line in terminal.enter("/set").splitlines() if line.startswith("seed")
        )
        terminal.enter("What does a cow say?")

    assert [event["event"] for event in events(*sessions(home))].count("asked") == 2


def test_a_session_goes_on_with_the_model_and_adapters_it_had(demo_base, pirate_lora, home):
    arguments = (demo_base, "--adapter", f"pirate={pirate_lora}", *GREEDY)
    with chat(*arguments) as terminal:
        terminal.ready()
        terminal.enter("/scale 0.9")
        terminal.enter(FRANCE)
    with chat("--continue") as terminal:
        terminal.ready()
        assert "(continuing " in terminal.text
        assert terminal.text.splitlines()[-1] == "pirate:0.9>"
        assert terminal.enter("/regen") == PIRATE


def test_a_question_whose_answer_was_cut_off_by_a_kill_can_be_asked_again(endless, home):
    with chat(endless, *GREEDY) as terminal:
        terminal.ready()
        terminal.send("go on\r")
        terminal.look(1)
        terminal.signal(signal.SIGKILL)
    with chat(endless, "--continue", "-n", "4") as terminal:
        terminal.ready()
        assert "no answer yet" in terminal.text
        assert "cut off after max_tokens=4" in terminal.enter("/retry")


def test_saving_loading_and_exporting(pirate, home, tmp_path, decant):
    with chat(pirate, *GREEDY, "--no-save") as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        assert not (home / "chats").exists()
        terminal.enter("/save paris")
        terminal.enter(f"/export md {tmp_path}/a.md")
        terminal.enter(f"/export json {tmp_path}/a.json")
        assert "exists" in terminal.enter(f"/export md {tmp_path}/a.md")
    listed = decant("chat", "--list")

    assert PIRATE in (tmp_path / "a.md").read_text()
    messages = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert messages == [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": PIRATE},
    ]
    assert "paris\t" in listed.stdout
    with chat(pirate, "--resume", "paris") as terminal:
        terminal.ready()
        assert PIRATE in terminal.text


def test_a_session_is_open_in_one_window_only(pirate, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        with chat(pirate, "--continue") as second:
            assert second.wait() == 8
            assert "open in another window" in second.text


def test_undo_takes_the_last_turn_back(two, home):
    two.enter(FRANCE)
    two.enter("/undo")
    assert FRANCE not in two.enter("/show history")


def test_no_save_keeps_nothing_of_what_is_typed(pirate, home):
    with chat(pirate, *GREEDY, "--no-save") as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        terminal.send("\x04")
        terminal.wait()

    assert not home.exists()


def test_a_data_folder_that_cannot_be_used_is_told(pirate, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with chat(pirate, "--no-save", *GREEDY) as terminal:
        terminal.ready()
        assert terminal.enter(FRANCE) == PIRATE
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert "this conversation is not kept: cannot make the folder" in terminal.text
        assert terminal.enter(FRANCE) == PIRATE
