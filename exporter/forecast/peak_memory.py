"""The memory that merging and quantizing takes, by replaying what is held at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from exporter.core.buffer_pool import IDLE_NBYTES, SMALL
from exporter.forecast.work import Part
from exporter.merge.row_blocks import BLOCK_VALUES

FLOAT32 = 4  # bytes of a value
THREAD_NBYTES = 5 * FLOAT32 * BLOCK_VALUES
"""Of a thread's block: stored, in float32, the product, rounded, and the block before."""
PEFT_COPIES = 3
"""Copies of an update in float32 that PEFT's layers hold: the product, scaled, and added."""


@dataclass(slots=True)
class HeldMemory:
    """The bytes of exporter/core/buffer_pool.py's blocks, in use and idle, without the blocks."""

    idle_most: int = IDLE_NBYTES
    """Bytes of idle blocks that the pool keeps."""
    idle: list[int] = field(default_factory=list)
    total: int = 0
    peak: int = 0

    def take(self, nbytes: int) -> int:
        """Size of the block that the pool gives for `nbytes`."""
        if nbytes < SMALL:
            return 0
        block = min((size for size in self.idle if nbytes <= size <= 2 * nbytes), default=None)
        if block is None:
            block = nbytes
            self.total += nbytes
            self.note(0)
        else:
            self.idle.remove(block)
        return block

    def give(self, block: int) -> None:
        if not block:
            return
        self.idle.append(block)
        while sum(self.idle) > self.idle_most:
            self.total -= self.idle.pop(0)

    def note(self, more: int) -> None:
        """`more` bytes are held beside the blocks for a moment."""
        self.peak = max(self.peak, self.total + more)


def peak_nbytes(parts: Iterable[Part], threads: int) -> int:
    """Largest sum of what the tensor being merged, the one being written and the threads hold."""
    held = HeldMemory()
    before = copied = 0  # block and copy of the tensor that is being quantized
    for part in parts:
        if not part.whole:
            continue
        block = held.take(part.stored_nbytes)
        if part.exact and part.stored_nbytes != part.values * FLOAT32:
            exact = held.take(part.values * FLOAT32)
            held.give(block)
            block = exact
        if part.by_peft:
            held.note(copied + PEFT_COPIES * part.values * FLOAT32)
        copy = 0
        if part.rearranged:
            copy = part.values * FLOAT32 if part.exact else part.stored_nbytes
            held.note(copied + copy)
            held.give(block)
            block = 0
        held.note(copied + copy)
        held.give(before)
        before, copied = block, copy
    return held.peak + threads * THREAD_NBYTES
