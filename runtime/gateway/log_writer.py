"""Writes in a separate thread, so that a slow or stopped reader delays no request."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE_S = 2  # for unwritten items, at the end


class Writer(Generic[Item]):
    """Passes items to `write` in order; above `room`, the oldest are dropped."""

    def __init__(self, write: Callable[[Item, int], None], room: int) -> None:
        """Start the thread. `write` also gets the number of items dropped before this one."""
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
        """Write the remaining items, for PATIENCE_S at most, and end the thread."""
        with self.changed:
            self.is_over = True
            self.changed.notify()
        self.thread.join(PATIENCE_S)
