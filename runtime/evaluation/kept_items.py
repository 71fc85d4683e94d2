"""Keeps items in memory, as each is read several times for each model."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from runtime.evaluation.item import Item
from runtime.evaluation.likelihood_groups import shown
from runtime.evaluation.measure import Items

MOST, CHARACTERS = 2_048, 4_000
"""The most items that stay, and characters of one; longer ones are read each time."""


class KeptItems:
    """The items of a dataset, some of which stay; several threads may read them at once."""

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
        """Keep an item; from MOST on, it replaces the item that was kept longest."""
        with self.lock:
            if len(self.kept) >= MOST:
                del self.kept[next(iter(self.kept))]
            self.kept[number] = item
