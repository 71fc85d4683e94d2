"""Prints a build's events: one updating line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from .report import BuildEvent

MIB = 1 << 20  # bytes
STEP_PERCENT = 5  # of progress between two plain lines
ALL = 100  # percent
REDRAW_S = 0.1  # at most ten times a second


class Console:
    """Prints events to `out`; `close` ends the updating line."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.live = out.isatty()
        self.last: tuple[str, int] = ("", -1)
        """The key (stage and message) of the latest line, and the percentage it showed."""
        self.drawn_s = 0.0
        self.open_line = False

    def __call__(self, event: BuildEvent) -> None:
        percent = ALL * event.done // event.total if event.total else 0
        key = f"{event.stage} {event.message}"
        fresh, finished = key != self.last[0], percent == ALL
        if self.live:
            if not fresh and not finished and time.monotonic() - self.drawn_s < REDRAW_S:
                return
            self._redraw(_line(event, percent), fresh=fresh)
        elif fresh or percent >= self.last[1] + STEP_PERCENT or finished > (self.last[1] == ALL):
            print(_line(event, percent), file=self.out, flush=True)
        else:
            return
        self.last = (key, percent)

    def close(self) -> None:
        """End the updating line, so that the next output starts on a new line."""
        if self.open_line:
            print(file=self.out, flush=True)
            self.open_line = False

    def _redraw(self, line: str, *, fresh: bool) -> None:
        if fresh:
            self.close()
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line[:width]}", end="", file=self.out, flush=True)
        self.drawn_s, self.open_line = time.monotonic(), True


def _line(event: BuildEvent, percent: int) -> str:
    if not event.total:
        return f"{event.stage:>9}  {event.message}"
    if event.stage == "compile":
        count = f"{event.done}/{event.total}"
    else:
        count = f"{event.done / MIB:.1f}/{event.total / MIB:.1f} MiB"
    return f"{event.stage:>9}  {event.message}  {percent:3d} %  {count}"
