"""Kills a process that takes more memory than was planned for it, before the machine runs out.

Only memory that no file holds counts: Linux may drop mapped weights at any time. RLIMIT_DATA would
also count memory that is reserved and never used, such as threads' deep stacks; RLIMIT_AS would
also count the mapped weights.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LOOK_S = 0.1  # seconds between two looks; a few threads fill half a gigabyte in that time
COUNTED = ("RssAnon", "RssShmem", "VmSwap")
"""Lines of /proc/PID/status, in kB."""
OOM_SCORE = "500"
"""From -1000 to 1000: when memory runs out, Linux ends such a process before others."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The bytes of memory that a process may take."""

    loading: int
    """The most until it is ready."""
    growth: int
    """The most that it may then take in addition."""


class Process(Protocol):
    """A child process, such as a Popen."""

    pid: int

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


class MemoryWatch:
    """Watches a process until it ends; does nothing on a system without /proc."""

    def __init__(self, process: Process, limit: MemoryLimit) -> None:
        self.process, self.limit = process, limit
        self.most = limit.loading
        self.taken = 0
        """The bytes that the process took when it was killed; 0 before."""
        threading.Thread(target=self.watch, name=f"memory of {process.pid}", daemon=True).start()

    def watch(self) -> None:
        while self.process.poll() is None:
            taken = private_nbytes(self.process.pid)
            if taken is None:
                return
            if taken > self.most:
                self.taken = taken
                self.process.kill()
                return
            time.sleep(LOOK_S)

    def is_ready(self) -> None:
        """Allow `growth` from now on, in addition to what the process already takes."""
        taken = private_nbytes(self.process.pid)
        if taken is not None:
            self.most = taken + self.limit.growth


def private_nbytes(pid: int) -> int | None:
    """The memory of a process that no file holds, in bytes; None if the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.partition(":")[0] in COUNTED]
    return sum(map(int, found)) << 10 if found else None


def end_first(pid: int) -> None:
    """Have Linux end a process first when the whole machine is out of memory."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(OOM_SCORE)
