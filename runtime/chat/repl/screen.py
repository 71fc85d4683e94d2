"""The output of the REPL: answers, and notes about them."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from exporter.cli.app import colours
from exporter.core.errors import DecantError
from exporter.core.events import Event, Note, Progress, Step, Warn
from exporter.core.terminal_text import without_controls

DIM, BOLD, RED, YELLOW, RESET = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
NARROWEST = 20  # columns of a text that is still readable beside its name


class Screen:
    """The terminal of a conversation; a model's output cannot control it."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        """Write to `out`, in colours if it is a terminal that has them."""
        self.out = out
        self.is_terminal = out.isatty()
        self.is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.colours = colours(self.is_terminal)
        self.at_start = True
        """Whether the cursor is at the beginning of a line."""
        self.held: list[Event] | None = None
        """The events reported while other code draws; None at other times."""

    @property
    def is_fancy(self) -> bool:
        """Whether lines can be redrawn."""
        return self.is_terminal and not self.is_dumb

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns

    def write(self, text: str, style: str = "") -> None:
        """Write a piece of a line at once."""
        if self.is_terminal:
            text = without_controls(text)
        if not text:
            return
        self.at_start = text.endswith("\n")
        styled = f"{style}{text}{RESET}" if style and self.colours else text
        self.out.write(styled)
        self.out.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a whole line, on a new line."""
        self.fresh_line()
        self.write(text, style)
        self.out.write("\n")
        self.out.flush()
        self.at_start = True

    def fresh_line(self) -> None:
        """Begin a new line unless this one is empty."""
        if not self.at_start:
            self.out.write("\n")
            self.out.flush()
            self.at_start = True

    def note(self, text: str) -> None:
        self.line(text, DIM)

    def warn(self, text: str) -> None:
        self.line(f"warning: {text}", YELLOW)

    def error(self, error: DecantError) -> None:
        """Write an error and its hint."""
        self.line(f"error: {error.message}", RED)
        if error.hint:
            self.line(f"hint: {error.hint}")

    def pairs(self, pairs: Mapping[str, object]) -> None:
        width = max((len(name) for name in pairs), default=0)
        for name, value in pairs.items():
            self.line(f"{name:<{width}}  {value}")

    def listed(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write names and texts side by side; a long text continues below its first line."""
        width = max((len(name) for name, _ in rows), default=0) + 2
        room = self.width - width - 1
        for name, text in rows:
            is_wrapped = self.is_terminal and room >= NARROWEST
            first, *others = (textwrap.wrap(text, room) if is_wrapped else [text]) or [""]
            self.line(f"{name:<{width}}{first}")
            for line in others:
                self.line(" " * width + line)

    def report(self, event: Event) -> None:
        """Write an event that the library reports."""
        if self.held is not None:
            self.held.append(event)
            return
        match event:
            case Warn():
                self.warn(event.message)
            case Step() | Note():
                self.note(event.message)
            case Progress():
                pass  # reloading a model takes a moment

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let other code draw in the block; the cursor is then at the beginning of a line.

        Events that are reported meanwhile are written after the block.
        """
        self.fresh_line()
        self.held = []
        try:
            yield
            self.at_start = True
        finally:
            held, self.held = self.held, None
            for event in held:
                self.report(event)
