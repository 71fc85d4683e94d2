"""Events that the library sends to its caller while it works. It never prints.

Every long verb takes `report: Report` as its last keyword and calls it from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Unit = Literal["bytes", "tensors", "steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the work begins."""

    message: str


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for the user, such as a choice that decant made."""

    message: str


@dataclass(frozen=True, slots=True)
class Warn:
    """A fact that may make the result differ from what the user expects."""

    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one task; sent often, so a renderer may skip any but the last."""

    task: str
    """The counted thing; the same text in every event of one task."""
    done: int
    total: int | None
    """None while the end is unknown."""
    unit: Unit
    detail: str = ""
    """Extra text, such as the endpoint that serves the bytes."""


Event: TypeAlias = Step | Note | Warn | Progress
Report: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """A report that drops every event."""


def once(report: Report) -> Report:
    """A report that forwards each note and warning only once."""
    seen: set[Event] = set()

    def tell(event: Event) -> None:
        if isinstance(event, Note | Warn):
            if event in seen:
                return
            seen.add(event)
        report(event)

    return tell
