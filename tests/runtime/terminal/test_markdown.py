"""Markdown on a terminal: rendered while it comes, and no text takes long."""

from __future__ import annotations

import time
from itertools import chain, repeat

import pytest

from runtime.terminal.markdown import BLOCK_MAX, MarkdownStream

MILLION = 1_000_000
HOSTILE = {
    "items": "- a\n" * (MILLION // 4), "items in items": "- " * (MILLION // 2),
    "rows": "|a|b|\n|-|-|\n" + "|x|y|\n" * (MILLION // 6),
    "columns": "|a" * (MILLION // 4) + "|\n" + "|-" * (MILLION // 4) + "|",
    "code": "```\n" + "x = 1\n" * (MILLION // 6), "brackets": "[" * MILLION,
    "stars": "*a **b " * (MILLION // 14) + "c** d* " * (MILLION // 14),
    "paragraphs": "# a\n\n" * (MILLION // 5), "lines": "a\n" * (MILLION // 2),
    "spaces": "| a |\n|" + " " * MILLION + "|-|",
}  # fmt: skip


@pytest.fixture(autouse=True)
def terminal(monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.faults
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("size", [64, MILLION], ids=["in pieces", "at once"])
def test_a_million_characters_take_no_long(name, size, capsys):
    text = HOSTILE[name]
    began = time.process_time()  # of all threads, however many other programs run
    with MarkdownStream() as stream:
        for at in range(0, len(text), size):
            stream.write(text[at : at + size])
    took = time.process_time() - began

    assert took < 20  # s of one core; it was minutes
    assert len(capsys.readouterr().out) > BLOCK_MAX


def test_short_blocks_are_rendered_and_a_long_one_is_printed_as_it_is(capsys):
    long = "\n".join(f"- *{number}*" for number in range(BLOCK_MAX // 4))
    with MarkdownStream() as stream:
        for text in ("say *one*\n\n", "```\nx\n\ny\n```\n\n", f"{long}\n\n", "say *two*\n\nend"):
            stream.write(text)
    out = capsys.readouterr().out

    assert "*one*" not in out
    assert "*two*" not in out
    assert long[-5000:] in out
    assert out.count("end") >= 1


def test_a_fence_that_is_printed_as_it_is_ends_where_it_is_closed(capsys):
    code = "```\n" + "x = 1\n\n" * BLOCK_MAX + "```\n"
    with MarkdownStream() as stream:
        stream.write(code + "\nsay *one*\n\n")
    out = capsys.readouterr().out

    _, found, after = out.partition(code[-5000:])
    assert found
    assert after.count("\x1b[1A") < 5  # nothing of it is wiped away
    assert "*one*" not in after


def test_what_comes_faster_than_it_is_rendered_is_printed_as_it_is(capsys):
    """The first rendering takes five seconds, and nothing else any."""
    seconds = chain([0], repeat(5))
    with MarkdownStream(lambda: 0, lambda: next(seconds)) as stream:
        for number in range(40):
            stream.write(f"say *{number}*\n\n")
    out = capsys.readouterr().out

    assert "*0*" not in out
    assert "say *39*" in out
