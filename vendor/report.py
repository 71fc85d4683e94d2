"""The progress events and the error of a build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal[
    "wait", "fetch", "verify", "unpack", "tools", "probe", "configure", "compile", "smoke", "done"
]


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """One step of a build's progress."""

    stage: Stage
    message: str
    done: int = 0
    """Bytes while fetching, verifying and unpacking; steps while compiling."""
    total: int = 0
    """The total in the unit of `done`; 0 if there is nothing to count."""


Report = Callable[[BuildEvent], None]


class BuildError(Exception):
    """The build cannot continue; the message says what happened, the hint what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def silent(_: BuildEvent) -> None:
    """Discard the event."""
