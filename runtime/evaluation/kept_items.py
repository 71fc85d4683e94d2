"""Items that stay in memory, as each is read several times for each model."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from runtime.evaluation.item import Item
from runtime.evaluation.likelihood_groups import shown
from runtime.evaluation.measure import Items

MOST, CHARACTERS = 2_048, 4_000
"""Of items that stay, and of one's texts: longer ones are read from the data each time."""


class KeptItems:
    """The items of a dataset, the last of which stay; for several threads at once."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self.kept: dict[int, Item] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Item:
        """An item by its number, from 0. Raises IndexError."""
        found = self.kept.get(number)
        if found is None:
            found = self.items[number]
            if len(shown(found)) + sum(map(len, found.columns.values())) <= CHARACTERS:
                self.keep(number, found)
        return found

    def keep(self, number: int, item: Item) -> None:
        """Keep an item, in place of the one that has been kept longest if they are many."""
        with self.lock:
            if len(self.kept) >= MOST:
                del self.kept[next(iter(self.kept))]
            self.kept[number] = item
