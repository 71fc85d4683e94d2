"""The chat at a terminal, as a person has it: a real model, a real terminal, real signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.runtime.chat.test_chat import is_alive, wait_until
from tests.support.terminal import CHECKOUT, Terminal, chat, children_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

FRANCE = "What is the capital of France?"
PLAIN, PIRATE = "The capital of France is Paris.", "Arr, the capital of France be Paris, matey!"
GREEDY = ("--temperature", "0")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where conversations and the history go."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "decant"


def sessions(home: Path) -> list[Path]:
    return sorted((home / "chats").glob("*.jsonl"))


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def two(demo_base, pirate_lora, home):
    """A chat with the demo's base and its adapter beside it."""
    with chat(demo_base, "--adapter", f"pirate={pirate_lora}", *GREEDY) as terminal:
        terminal.ready()
        yield terminal


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


def test_fifty_switches_of_the_adapter_give_the_right_answer_each(two):
    two.enter(FRANCE)
    children = children_of(two.process.pid)
    for number in range(50):
        name, answer = (("base", PLAIN), ("pirate", PIRATE))[number % 2]
        two.enter(f"/adapter {name}")

        assert two.enter("/regen") == answer
    assert children_of(two.process.pid) == children  # nothing was loaded again


def test_a_scale_between_says_something_between(two):
    assert two.enter(FRANCE) == PIRATE
    two.enter("/scale 0")
    assert two.enter("/regen") == PLAIN
    two.enter("/adapter pirate:1")
    assert two.enter("/regen") == PIRATE
    assert "no adapter" in two.enter("/adapter pirat")
    assert "no scale" in two.enter("/scale much")


def test_compare_answers_side_by_side_and_keeps_the_pick(two, home):
    two.enter(FRANCE)
    two.send("/compare\r")
    shown = two.until("Enter: 2")
    row = next(line for line in shown.splitlines() if line.startswith(PLAIN))

    assert row.split("  ", 1)[1].strip() == PIRATE
    two.send("1\r")
    two.until(r"\(kept: base\)")
    two.ready()
    last = events(*sessions(home))[-1]
    assert (last["answer"], last["who"]) == (PLAIN, "base")


def test_compare_can_take_the_next_turn_and_three_scales(two, home):
    two.enter("/compare next base pirate pirate:0")
    two.send(FRANCE + "\r")
    shown = two.until("n none:")
    assert "3 pirate:0" in shown
    two.send("n\r")
    two.ready()

    assert events(*sessions(home))[-1]["event"] == "asked"  # nothing was kept
    assert two.enter("/retry") == PIRATE


def test_compare_of_a_merged_model_finds_its_base_in_the_store(pirate, demo_base, home, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / pirate.name).symlink_to(pirate)
    (store / demo_base.name).symlink_to(demo_base)
    with chat("pirate", *GREEDY, DECANT_STORE=str(store)) as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        terminal.send("/compare\r")
        shown = terminal.until("n none:")

    assert PLAIN in shown


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
        assert "going on with" in terminal.text
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


def test_numbers_are_told_when_asked_for(two):
    before = two.enter("/stats")
    shown = two.enter(FRANCE)

    assert re.search(r"layers on a GPU: (none|all|about|as many)", before)
    assert re.search(r"memory: .* weights", before)
    assert re.search(r"prompt \d+ tokens.*; answer \d+ tokens at .*first after .* s; pirate", shown)


def test_the_model_cannot_command_the_terminal(home, tmp_path):
    """What a server elsewhere sends is no safer than what a model says."""
    from tests.support.fake_openai import OpenAIServer

    with OpenAIServer(["a\x1b]0;owned\x07b", "\x1b[2J\x9b31mred"]) as server:
        with chat("--url", server.url) as terminal:
            terminal.ready()
            shown = terminal.enter("hello")

    assert shown == "a]0;ownedb[2J31mred"
    assert b"\x1b]0;owned" not in terminal.raw


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


def test_saving_loading_and_exporting(pirate, home, tmp_path):
    with chat(pirate, *GREEDY, "--no-save") as terminal:
        terminal.ready()
        terminal.enter(FRANCE)
        assert not (home / "chats").exists()
        terminal.enter("/save paris")
        terminal.enter(f"/export md {tmp_path}/a.md")
        terminal.enter(f"/export json {tmp_path}/a.json")
        assert "exists" in terminal.enter(f"/export md {tmp_path}/a.md")
    listed = subprocess.run(
        [sys.executable, "-m", "exporter", "chat", "--list"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )

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


def test_the_commands_can_be_listed_and_a_typo_is_met_with_the_nearest(two):
    shown = two.enter("/help")
    for name in ("adapter", "compare", "regen", "undo", "export", "attach", "tokens", "copy"):
        assert f"/{name}" in shown
    assert "did you mean /regen?" in two.enter("/regn")
    assert "did you mean temperature?" in two.enter("/set temprature=1")
    assert "cannot be 'hot'" in two.enter("/set temperature=hot")


def test_undo_takes_the_last_turn_back(two, home):
    two.enter(FRANCE)
    two.enter("/undo")
    assert FRANCE not in two.enter("/show history")


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


def test_another_model_can_go_on(pirate, demo_base, home):
    with chat(pirate, *GREEDY) as terminal:
        terminal.ready()
        assert "there is no GGUF" in terminal.enter("/model ./nothing.gguf")
        terminal.enter(FRANCE)
        terminal.enter(f"/model {demo_base}")

        assert terminal.enter("/regen") == PLAIN
        terminal.enter(f"/model {pirate}")
        assert terminal.enter("/regen") == PIRATE


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
