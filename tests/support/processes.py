"""Facts about processes: whether they live, their descendants, and waiting for a fact."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from exporter.core.leftover_folders import ENDED, stat_of

USED, IN_THE_SYSTEM = 11, 12  # places in stat_of, of ticks of a clock


def is_alive(pid: int) -> bool:
    """Whether a process runs, or has ended and this process has still to wait for it.

    What other processes leave to wait for does not count: the system's first process may take
    seconds for it.
    """
    state, parent, *_ = stat_of(pid) or (ENDED[0], "")
    return state not in ENDED or parent == str(os.getpid())


def cpu_s(pid: int) -> float:
    """Seconds of processors that a process has had; 0 where there is none."""
    fields = stat_of(pid) or ["0"] * (IN_THE_SYSTEM + 1)
    return (int(fields[USED]) + int(fields[IN_THE_SYSTEM])) / os.sysconf("SC_CLK_TCK")


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
