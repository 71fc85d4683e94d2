"""Facts about processes: whether they live, their descendants, and waiting for a fact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
