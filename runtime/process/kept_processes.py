"""Processes that end when this one does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.process import exit_with_parent

STACK = 256 << 20  # bytes; std::regex recurses with each character of a word: see WORD_MAX


class Guarded(subprocess.Popen[bytes]):
    """A guard and its program, in a new session.

    They are killed together: a guard that is killed alone cannot end its program.
    """

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def start_kept(
    argv: Sequence[str], *, by_kernel: bool = sys.platform == "linux", **options: Any
) -> subprocess.Popen[bytes]:
    """Start a program that ends when this process ends; options are Popen's.

    by_kernel: Linux kills the program when the thread that started it ends; hence that thread waits
    for it. Otherwise a guard kills it; then the caller passes `stdin` = PIPE and
    `start_new_session`.
    """
    guard = [sys.executable, "-I", "-S", exit_with_parent.__file__]
    if not by_kernel:
        return Guarded([*guard, *argv], **options)
    guarded = [*guard, exit_with_parent.PARENT, str(os.getpid()), *argv]
    started: Future[subprocess.Popen[bytes]] = Future()

    def keep() -> None:
        try:
            process = subprocess.Popen(guarded, **options)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        with suppress(ChildProcessError):  # another thread has already reaped it
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=keep, name=f"keeper of {Path(argv[0]).name}", daemon=True).start()
    return started.result()


def deepen_stacks() -> None:
    """Raise the stack limit of processes started from now on to STACK, as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
