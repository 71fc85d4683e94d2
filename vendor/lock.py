"""One process at a time: an advisory lock on a file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold `path`'s lock inside the block; `waiting` is called once if someone else has it.

    The descriptor may be passed on to a child process: should this process be killed,
    the lock stays taken until that child has ended too, so nobody builds over its feet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield descriptor
        finally:
            # Unlock by hand: a compiler daemon may have inherited the descriptor and outlive us.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
