"""Events that cross from one process to another are the same there."""

from __future__ import annotations

import pytest

from exporter.core.event_lines import event_line, event_of, wants_lines
from exporter.core.events import Event, Note, Progress, Step, Warn

EVENTS = (
    Step("merging [1/2]"),
    Note("two\nlines"),
    Warn("ein Käfer 虫"),
    Progress("quantizing", 3, 10, "bytes", "a.example"),
    Progress("reading", 0, None, "tensors"),
)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_the_same_after_its_line(event: Event):
    line = event_line(event)

    assert "\n" not in line
    assert event_of(f"{line}\n") == event


@pytest.mark.parametrize(
    "line",
    ["", "error: no", "{}", "[]", "3", '{"event": "other"}', '{"event": "step"}',
     '{"event": "step", "message": "a", "more": 1}', '{"event": []}'],
)  # fmt: skip
def test_another_line_is_no_event(line: str):
    assert event_of(line) is None


def test_lines_are_for_those_who_ask_for_them():
    assert not wants_lines({})
    assert not wants_lines({"DECANT_EVENTS": "1"})
    assert wants_lines({"DECANT_EVENTS": "json"})
