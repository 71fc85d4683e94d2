"""Writes in a thread of its own: whoever reads may be slow, or have stopped, and nobody waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE_S = 2  # for what is not written yet, at the end


class Writer(Generic[Item]):
    """Hands items to `write`, in their order; the oldest are dropped where there are too many."""

    def __init__(self, write: Callable[[Item, int], None], room: int) -> None:
        """Start the thread. `write` is told, too, how many were dropped just before."""
        self.write = write
        self.items: deque[Item] = deque()
        self.room = room
        self.dropped = 0
        self.is_over = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="writer", daemon=True)
        self.thread.start()

    def put(self, item: Item) -> None:
        with self.changed:
            if len(self.items) >= self.room:
                self.items.popleft()
                self.dropped += 1
            self.items.append(item)
            self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.items or self.is_over)
                if not self.items:
                    return
                item, dropped, self.dropped = self.items.popleft(), self.dropped, 0
            self.write(item, dropped)

    def close(self) -> None:
        """Write what is left, for as long as somebody reads."""
        with self.changed:
            self.is_over = True
            self.changed.notify()
        self.thread.join(PATIENCE_S)
