"""Reports faults that belong to no request in the server's log, each kind at most every 10 s."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from exporter.core.events import Report, Warn

EVERY_S = 10  # between two reports of one kind
KINDS_MAX = 100  # of faults that are remembered
TRACE_MAX = 4000  # characters
CANCELLED = "asyncio.exceptions.CancelledError"
"""The last line of what uvicorn logs when a second Ctrl-C ends the server at once."""


@dataclass
class Faults:
    """Reports each kind of fault at most every EVERY_S, with the number of those withheld."""

    report: Report
    clock: Callable[[], float] = time.monotonic
    reported: dict[str, float] = field(default_factory=dict)
    withheld: dict[str, int] = field(default_factory=dict)

    def tell(self, kind: str, message: str) -> None:
        """Report a fault, or count it when its kind was reported recently."""
        now = self.clock()
        if now - self.reported.get(kind, -EVERY_S) < EVERY_S:
            self.withheld[kind] = self.withheld.get(kind, 0) + 1
            return
        if len(self.reported) >= KINDS_MAX:
            self.reported.clear()
        self.reported[kind] = now
        more = self.withheld.pop(kind, 0)
        self.report(Warn(f"{message} ({more} more like it before)" if more else message))

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Handle an event loop's exception."""
        del loop
        error = context.get("exception")
        message = str(context.get("message", "a fault"))
        self.tell(f"{message} {type(error).__name__}", f"{message}{trace_of(error)}")


class Handler(logging.Handler):
    """Reports the warnings that libraries log, instead of printing them to standard error."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(logging.WARNING)
        self.faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.getMessage().rstrip().endswith(CANCELLED):
            return
        kind = f"{record.name} {record.msg} {type(error).__name__}"
        self.faults.tell(kind, f"{record.name}: {record.getMessage()}{trace_of(error)}")


def trace_of(error: object) -> str:
    """An exception with its traceback, as text for the log."""
    if not isinstance(error, BaseException):
        return ""
    return f": {''.join(traceback.format_exception(error)).strip()[-TRACE_MAX:]}"


@contextmanager
def listened(faults: Faults) -> Iterator[None]:
    """Report the warnings and errors that are logged inside the block."""
    handler, root = Handler(faults), logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
