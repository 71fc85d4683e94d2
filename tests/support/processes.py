"""Facts about processes: whether they live, their descendants, and waiting for a fact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether a process runs, or has ended and this process has still to wait for it.

    What other processes leave to wait for does not count: the system's first process may take
    seconds for it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, parent = stat.rpartition(")")[2].split()[:2]
    return state not in "ZX" or int(parent) == os.getpid()


def wait_until(fact: Callable[[], object], timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if fact():
            return True
        time.sleep(0.02)
    return False


def descendants(pid: int) -> list[int]:
    """The processes that a process's threads started, and theirs."""
    found = []
    for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for child in (thread / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found
