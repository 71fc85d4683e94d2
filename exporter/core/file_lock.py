"""Locks on files under construction; the system releases them when a process dies.

This module uses flock, not the package filelock, which locks a separate file and removes that file
afterwards. Here the lock is on the partial file, the folder or the session itself and survives its
renaming, so that a writer sees that another one has just published the file it opened.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def lock(file: int | IO[Any]) -> None:
    """Wait for and take the lock of an open file or folder, given as a file or its descriptor."""
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: int | IO[Any]) -> bool:
    """Take the lock unless another process holds it; returns whether this process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, which is created and stays; processes with the same path wait.

    waiting: called before a wait for another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not try_lock(file):
            waiting()
            lock(file)
        yield
