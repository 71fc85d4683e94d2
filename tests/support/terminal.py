"""A terminal for tests: a program on a pseudo-terminal, and the text that a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import Self

from tests.support.forked import popen

PROMPT = re.compile(r"^(?:[\w.+-]+(?::-?[\d.]+)?)?> ?$")
PATIENCE_S = 20
ALTERNATE = 1049  # the private mode of the alternate screen
SETTLING_S = 0.05  # the longest look that ends early
SETTLED_S = 0.005  # such a look ends this time after the last output


class Terminal:
    """A program in a terminal; it is killed at the end of the `with` block."""

    def __init__(
        self, argv: Sequence[object], *, columns: int = 100, rows: int = 40, **env: str
    ) -> None:
        """Start the program in a terminal with `columns` and `rows`."""
        import pyte

        self.screen: Any = two_screens()(columns, rows, history=5000, ratio=0.5)
        self.stream: Any = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = popen(
            [str(argument) for argument in argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm-256color", **os.environ, **env},
            start_new_session=True,
            terminal=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def look(self, seconds: float = 0.05) -> None:
        """Read the program's output for this time; a short look ends when the output does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                if seconds <= SETTLING_S:
                    until = time.monotonic() + SETTLED_S
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:  # the program has ended
                    return
                self.raw += data
                self.stream.feed(data)
                if b"\x1b[6n" in data:  # the program asks for the cursor's place
                    row, column = self.screen.cursor.y + 1, self.screen.cursor.x + 1
                    os.write(self.master, f"\x1b[{row};{column}R".encode())

    @property
    def lines(self) -> list[str]:
        """All lines so far, including those that have scrolled away."""
        shown = (self.screen.buffer[row] for row in range(self.screen.lines))
        return [self.read(line) for line in (*self.screen.history.top, *shown)]

    def read(self, line: Any) -> str:
        """A line's characters; pyte's `display` would compute the width of every character."""
        return "".join(line[at].data for at in range(self.screen.columns)).rstrip()

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    @property
    def at(self) -> int:
        """The number of the line with the cursor."""
        return len(self.screen.history.top) + self.screen.cursor.y

    @property
    def is_waiting(self) -> bool:
        """Whether the cursor is at an empty prompt."""
        return bool(PROMPT.match(self.read(self.screen.buffer[self.screen.cursor.y])))

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, fact: str, patience_s: float = PATIENCE_S) -> str:
        """Wait until the regular expression `fact` matches the text; returns the whole text."""
        deadline = time.monotonic() + patience_s
        while not re.search(fact, self.text, re.MULTILINE):
            if time.monotonic() > deadline:
                raise AssertionError(f"{fact!r} did not appear:\n{self.text}")
            if self.process.poll() is not None:
                self.look(0.2)
                if not re.search(fact, self.text, re.MULTILINE):
                    raise AssertionError(f"it ended before {fact!r} appeared:\n{self.text}")
                break
            self.look()
        return self.text

    def ready(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until the cursor is at an empty prompt."""
        deadline = time.monotonic() + patience_s
        while True:
            self.look()
            if self.is_waiting:
                return
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no prompt came:\n{self.text}")

    def enter(self, keys: str, patience_s: float = PATIENCE_S) -> str:
        """Type a line at the prompt; returns the lines that follow, up to the next prompt."""
        self.look()  # while a prompt is drawn, the cursor is below it for a moment
        before = self.at
        self.send(keys + "\r")
        deadline = time.monotonic() + patience_s
        while True:
            self.look()
            if self.at > before and self.is_waiting:
                return "\n".join(self.lines[before + 1 : self.at])
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no prompt came after {keys!r}:\n{self.text}")

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Read the output until the program ends; returns its exit code."""
        deadline = time.monotonic() + patience_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
            self.look()
        self.look(0.2)
        return self.process.returncode

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)


@cache
def two_screens() -> Any:
    """A class of pyte's screens that has the alternate screen, which pyte itself lacks."""
    import pyte

    class Screen(pyte.HistoryScreen):  # type: ignore[misc]  # pyte ships no types
        kept: Any = None

        def index(self) -> None:
            kind = pyte.HistoryScreen if self.kept is None else pyte.Screen
            kind.index(self)  # the alternate screen has no history

        def set_mode(self, *modes: int, **kwargs: Any) -> None:
            super().set_mode(*modes, **kwargs)
            if ALTERNATE in modes and self.kept is None:
                self.kept = deepcopy(self.buffer), copy(self.cursor)
                self.erase_in_display(2)

        def reset_mode(self, *modes: int, **kwargs: Any) -> None:
            super().reset_mode(*modes, **kwargs)
            if ALTERNATE in modes and self.kept is not None:
                self.buffer, self.cursor = self.kept
                self.cursor.y = min(self.cursor.y, self.lines - 1)
                self.dirty.update(range(self.lines))
                self.kept = None

    return Screen


def chat(*arguments: object, **options: Any) -> Terminal:
    """Start `decant chat` in a terminal."""
    return Terminal([sys.executable, "-m", "exporter", "chat", *arguments], **options)


def children_of(pid: int) -> list[int]:
    """The processes that any thread of a process has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(one) for found in lists for one in found.read_text().split())


def on_a_terminal(code: str, **env: str) -> str:
    """The text that a person sees of a Python program's output."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm", **env},
    )  # fmt: skip
    os.close(side)
    seen = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the other end has closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(main)
    assert process.wait(20) == 0
    return seen.decode()


def plain(seen: str) -> str:
    """The text without the codes for colours and cursor movements."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen)
