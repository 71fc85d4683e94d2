"""Large blocks of memory that are used again."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref

IDLE_NBYTES = 192 << 20
SMALL = 1 << 20  # bytes; what malloc keeps by itself


class Pool:
    """Blocks that return when nothing refers to them any more.

    To be given fresh pages by the system takes several times as long as to fill them.
    """

    def __init__(self, idle_nbytes: int = IDLE_NBYTES) -> None:
        """Keep at most so many bytes that nobody uses."""
        self.idle_nbytes = idle_nbytes
        self.idle: list[mmap.mmap] = []
        # A block may return while this thread holds the lock: whenever garbage is collected.
        self.lock = threading.RLock()

    def take(self, nbytes: int) -> ctypes.Array[ctypes.c_ubyte]:
        """A buffer of that size, of any content, for whoever refers to it."""
        if nbytes < SMALL:
            return (ctypes.c_ubyte * nbytes)()
        with self.lock:
            fitting = [block for block in self.idle if nbytes <= len(block)]
            block = min(fitting, key=len, default=None)
            if block is not None:
                self.idle = [other for other in self.idle if other is not block]
        block = block or mmap.mmap(-1, nbytes)
        buffer = (ctypes.c_ubyte * nbytes).from_buffer(block)
        weakref.finalize(buffer, self.give, block).atexit = False
        return buffer

    def give(self, block: mmap.mmap) -> None:
        """Keep the block, in place of those that came earlier."""
        with self.lock:
            self.idle.append(block)
            while sum(map(len, self.idle)) > self.idle_nbytes:
                self.idle.pop(0)
