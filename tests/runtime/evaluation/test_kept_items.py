"""Short items are read once, and they do not fill memory."""

from __future__ import annotations

import pytest

from runtime.evaluation.item import Item
from runtime.evaluation.kept_items import CHARACTERS, MOST, KeptItems


class Rows(list):
    """Items, and the numbers of those that were read."""

    read: list[int]

    def __getitem__(self, number):
        self.read.append(number)
        return super().__getitem__(number)


def rows(*sizes: int) -> Rows:
    made = Rows(Item(str(n), n + 1, references=("x" * size,)) for n, size in enumerate(sizes))
    made.read = []
    return made


def test_a_short_item_is_read_once_and_a_long_one_each_time():
    source = rows(10, CHARACTERS * 2, 20)
    items = KeptItems(source)

    assert [items[n].id for n in (0, 1, 2, 0, 1, 2)] == ["0", "1", "2"] * 2
    assert [item.id for item in items] == ["0", "1", "2"]
    assert source.read == [0, 1, 2, 1, 1]
    with pytest.raises(IndexError):
        items[3]


def test_the_oldest_makes_room():
    source = rows(*[1] * (MOST + 2))
    items = KeptItems(source)

    assert len(list(items)) == MOST + 2

    assert len(items.kept) == MOST
    assert items[MOST + 1].id == str(MOST + 1)
    assert len(source.read) == MOST + 2
    assert items[0].id == "0"
    assert len(source.read) == MOST + 3
