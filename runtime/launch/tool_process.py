"""Runs a tool in the terminal's foreground until it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from exporter.core.errors import InputError

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end decant; the tool gets them, and decant puts everything back first."""


def run_tool(argv: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run a tool with more variables; returns its exit code, 128 + a signal's number.

    Ctrl-C is the tool's. Raises InputError if it cannot be started.
    """
    tool: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before the tool was started

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            return
        if tool is None:
            early.append(number)
        else:
            tool.send_signal(number)

    # a handler for Ctrl-C, too, as the tool would inherit SIG_IGN
    with handled_by(handle):
        try:
            tool = process = subprocess.Popen(argv, env={**os.environ, **variables})
        except OSError as error:  # such as a script whose interpreter is gone
            raise InputError(
                f"`{argv[0]}` cannot be started: {error.strerror}",
                hint="does it start without decant? else install it again",
            ) from error
        for number in early:
            process.send_signal(number)
        code = process.wait()
    return 128 - code if code < 0 else code


def wait_for_ctrl_c() -> None:
    """Wait until a signal asks this process to end."""
    ending = threading.Event()
    with handled_by(lambda *_: ending.set()):
        ending.wait()


@contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that end a program until the block ends."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
