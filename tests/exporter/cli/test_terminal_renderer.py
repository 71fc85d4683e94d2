from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from exporter.cli.terminal_renderer import Lines, shortened
from exporter.core.event_lines import AS_JSON, VARIABLE, event_of
from exporter.core.events import Note, Progress, Step, Warn
from tests.support.terminal import on_a_terminal, plain

pytestmark = pytest.mark.lasting

SHOW = """
import time
from exporter.cli.terminal_renderer import reporting, print_table
from exporter.core.event_lines import AS_JSON, VARIABLE, event_of
from exporter.core.events import Note, Progress, Step, Warn
with reporting() as report:
    report(Step("merging [1/2]"))
    report(Note("a [note]"))
    report(Warn("a [warning]"))
    for done in range(0, 101, 5):
        report(Progress("quantizing", done, 100, "bytes"))
        time.sleep(0.005)
print_table(("NAME", "SIZE"), [("a [b]", "1 MB")])
"""


def test_off_a_terminal_progress_is_a_few_plain_lines():
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)

    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr
    assert done.stderr.splitlines()[:3] == ["merging [1/2]", "  a [note]", "warning: a [warning]"]
    assert done.stderr.count("quantizing:") == 10
    assert done.stdout == "NAME\tSIZE\na [b]\t1 MB\n"


def test_off_a_terminal_rich_is_not_even_loaded():
    code = SHOW + "\nimport sys; assert 'rich' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_on_a_terminal_there_is_a_bar_and_markup_is_not_obeyed():
    seen = on_a_terminal(SHOW)

    assert "\x1b[" in seen
    assert "merging [1/2]" in seen
    assert "a [warning]" in seen
    assert "a [b]" in seen


def test_no_color_keeps_the_terminal_plain_of_colours():
    colours = re.compile(r"\x1b\[[\d;]*3\dm|\x1b\[[\d;]*38;")

    assert colours.search(on_a_terminal(SHOW))
    assert not colours.search(on_a_terminal(SHOW, NO_COLOR="1"))


def test_a_dumb_terminal_gets_lines():
    seen = on_a_terminal(SHOW, TERM="dumb")

    assert "\x1b[" not in seen.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "quantizing: 50%" in seen


def test_a_caller_that_asks_gets_each_event_and_some_of_the_progress():
    env = {**os.environ, VARIABLE: AS_JSON}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=env
    )
    events = [event_of(line) for line in done.stderr.splitlines()]

    assert events[:4] == [
        Step("merging [1/2]"), Note("a [note]"), Warn("a [warning]"),
        Progress("quantizing", 0, 100, "bytes"),
    ]  # fmt: skip
    assert events[-1] == Progress("quantizing", 100, 100, "bytes")
    assert len(events) < 15


def test_each_tenth_is_told_once(capsys):
    lines = Lines()
    for done in [*range(1001), 1000, 1000]:
        lines.report(Progress("x", done, 1000, "steps"))
    lines.report(Progress("unknown end", 3, None, "steps"))

    assert capsys.readouterr().err.splitlines() == [
        f"  x: {percent}% of 1000 steps" for percent in range(10, 101, 10)
    ]


def test_the_kinds_of_events_are_told_apart(capsys):
    for event in (Step("step"), Note("note"), Warn("warn")):
        Lines().report(event)

    assert capsys.readouterr().err == "step\n  note\nwarning: warn\n"
    assert isinstance(sys.stderr, io.TextIOBase)


def test_a_long_name_leaves_room_for_the_numbers():
    assert shortened("a/b/model-00001-of-00003.safetensors", 12) == "model-00001…"
    assert shortened("a/b/x.json", 8) == "x.json"
    assert shortened("a/x.json", 12) == "a/x.json"


def test_on_a_narrow_terminal_the_time_left_is_still_there():
    show = SHOW.replace("quantizing", "a-very-long-name-of-a-file-of-a-model.safetensors")

    seen = on_a_terminal(show, COLUMNS="40")

    assert re.search(r"a-very-lon… [-\d:…]+ [\d ]+ bytes of 100 bytes", plain(seen))
