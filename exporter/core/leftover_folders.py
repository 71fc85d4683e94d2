"""Makes temporary folders, and deletes those that killed processes left.

A folder's name holds the id of its process and when that began: in a container, each process that
is started first has the id 1.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

PROC = Path("/proc")
STATE = 0
"""The place of the state's letter in /proc/PID/stat, after the program's name."""
ENDED = ("Z", "X")
"""The states of a process that has ended; a container's first process may leave it so for ever."""
START = 19
"""The place of the start time there."""


def temporary_folder(folder: Path, prefix: str) -> TemporaryDirectory[str]:
    """A new folder whose name tells this process; deletes the folders of ended processes.

    prefix: the start of the names of such folders in `folder`.
    """
    sweep(folder, prefix)
    pid = os.getpid()
    return TemporaryDirectory(prefix=f"{prefix}{pid}-{start_of(pid)}-", dir=folder)


def sweep(folder: Path, prefix: str) -> None:
    """Delete the folders whose processes have ended."""
    for left in folder.glob(f"{prefix}*-*"):
        pid, _, rest = left.name.removeprefix(prefix).partition("-")
        if not (pid.isdecimal() and is_running(int(pid), rest.partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)


def is_running(pid: int, start: str) -> bool:
    """Whether the process with this id runs, and began at this time if that is known."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process runs, as another user
        pass
    fields = stat_of(pid)
    return not fields or (fields[START] == start and fields[STATE] not in ENDED)


def start_of(pid: int) -> str:
    """When a process began, in clock ticks since the system's start; empty if unknown."""
    fields = stat_of(pid)
    return fields[START] if fields else ""


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name; none where there is no such file."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()
