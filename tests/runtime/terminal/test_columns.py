"""Texts side by side: frames of any size, and the whole texts at the end."""

from __future__ import annotations

import time

import pytest

from runtime.terminal.columns import Columns


@pytest.fixture(autouse=True)
def terminal(monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def drawn(columns: Columns) -> list[str]:
    """The lines of a frame."""
    with columns.console.capture() as capture:
        columns.console.print(columns)
    return capture.get().splitlines()


def test_columns_that_grow_are_drawn_by_their_ends_and_printed_whole(capsys):
    with Columns(["one", "two"]) as columns:
        columns.write(0, "first " + "word " * 5000 + "last")
        began = time.monotonic()
        drawn(columns)
        assert time.monotonic() - began < 1
    out = capsys.readouterr().out
    whole = out.rpartition("\x1b[?1049l")[2]

    assert "first" in whole
    assert whole.count("word") == 5000


@pytest.mark.parametrize("size", [(20, 5), (80, 24), (200, 60), (3, 2)])
def test_a_frame_fits_on_the_screen_and_shows_the_end(monkeypatch, size):
    monkeypatch.setenv("COLUMNS", str(size[0]))
    monkeypatch.setenv("LINES", str(size[1]))
    columns = Columns(["one", "a much longer name than the other"], title="which? " * 50)
    columns.write(0, "word " * 5000 + "end")
    columns.write(1, "short")
    lines = drawn(columns)

    assert len(lines) <= max(size[1], 3)
    if size[0] >= 20:
        assert "end" in lines[-1]
        assert "short" in lines[2]
