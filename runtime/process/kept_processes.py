"""Processes that end when this one does."""

from __future__ import annotations

import os
import resource
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


def start_kept(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends when this process does; options are Popen's.

    Linux kills it when the thread that started it ends: that thread waits for its end here.
    """
    guarded = [
        sys.executable,
        "-I",
        "-S",
        exit_with_parent.__file__,
        exit_with_parent.PARENT,
        str(os.getpid()),
        *argv,
    ]
    started: Future[subprocess.Popen[bytes]] = Future()

    def keep() -> None:
        try:
            process = subprocess.Popen(guarded, **options)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        if sys.platform == "linux":
            with suppress(ChildProcessError):  # somebody else has waited for it
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=keep, name=f"keeper of {Path(argv[0]).name}", daemon=True).start()
    return started.result()


def deepen_stacks() -> None:
    """Give the threads of processes that are started from now on deep stacks, where allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
