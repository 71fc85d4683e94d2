"""What the library tells its caller while it works. It never prints.

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
    """A fact the user should know, such as a choice made on their behalf."""

    message: str


@dataclass(frozen=True, slots=True)
class Warn:
    """A fact that may make the result other than the user expects."""

    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one task is; sent often, so a renderer may skip any but the last."""

    task: str
    """What is counted, the same text in every event of one task."""
    done: int
    total: int | None
    """None while the end is unknown."""
    unit: Unit
    detail: str = ""
    """Said beside it, such as who serves the bytes."""


Event: TypeAlias = Step | Note | Warn | Progress
Report: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """The report that nobody reads."""


def once(report: Report) -> Report:
    """The report, to which each note and warning is given only once."""
    said: set[Event] = set()

    def tell(event: Event) -> None:
        if isinstance(event, Note | Warn):
            if event in said:
                return
            said.add(event)
        report(event)

    return tell
