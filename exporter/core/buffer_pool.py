"""A pool of large memory blocks that are reused."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref

IDLE_NBYTES = 192 << 20  # bytes that a pool keeps unused
SMALL = 1 << 20  # bytes; malloc reuses smaller blocks by itself


class Pool:
    """Blocks of memory, recycled when nothing refers to them any more.

    Getting fresh pages from the system takes several times as long as filling them.
    """

    def __init__(self, idle_nbytes: int = IDLE_NBYTES) -> None:
        """Pool that keeps at most `idle_nbytes` bytes of unused blocks."""
        self.idle_nbytes = idle_nbytes
        self.idle: list[mmap.mmap] = []
        # Garbage collection may return a block while this thread holds the lock.
        self.lock = threading.RLock()

    def take(self, nbytes: int) -> ctypes.Array[ctypes.c_ubyte]:
        """Uninitialized buffer of `nbytes` bytes, recycled when unreferenced."""
        if nbytes < SMALL:
            return (ctypes.c_ubyte * nbytes)()
        with self.lock:
            # a small buffer would keep a large block from the next large one
            fitting = [block for block in self.idle if nbytes <= len(block) <= 2 * nbytes]
            block = min(fitting, key=len, default=None)
            if block is not None:
                self.idle = [other for other in self.idle if other is not block]
        block = block or mmap.mmap(-1, nbytes)
        buffer = (ctypes.c_ubyte * nbytes).from_buffer(block)
        weakref.finalize(buffer, self.give, block).atexit = False
        return buffer

    def give(self, block: mmap.mmap) -> None:
        """Keep a block for reuse; beyond the limit the oldest ones are freed."""
        with self.lock:
            self.idle.append(block)
            while sum(map(len, self.idle)) > self.idle_nbytes:
                self.idle.pop(0)
