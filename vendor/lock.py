"""An advisory lock on a file, for one process at a time.

It does not use the package filelock: this module runs before any package is installed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the lock of `path` in the block; call `waiting` once if another process holds it.

    A child process may inherit the descriptor: if this process is killed, the lock stays held until
    the child has ended, so that no other build writes to the same folder.
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
            # A compiler daemon may have inherited the descriptor and outlive us: unlock explicitly.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
