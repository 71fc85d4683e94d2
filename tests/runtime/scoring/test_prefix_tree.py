"""Every token of every text is in the tree once, after all those before it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from runtime.scoring.prefix_tree import STEP_COST, Node, common, forest, levels, packs

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=4).map(
    lambda words: [letter for word in words for letter in [word] * 12]
), max_size=12)  # fmt: skip


def cells(nodes: Sequence[Node]) -> int:
    return sum(node.stop - node.start for level in levels(nodes) for node in level)


@given(TEXTS, st.integers(48, 80), st.integers(1, 5))
def test_a_pack_holds_each_of_its_texts_whole_and_keeps_to_the_room(texts, room, most):
    seen = []
    for members in packs(texts, cells=room, most=most, batch=24):
        roots = forest(texts, members, cells=room, batch=24)
        assert len(members) <= most
        assert cells(roots) <= room
        parts: dict[int, list[int]] = {number: [] for number in members}
        for level in levels(roots):
            for node in level:
                run = texts[node.members[0]][node.start : node.stop]
                for number in node.members:
                    assert len(parts[number]) == node.start
                    assert texts[number][node.start : node.stop] == run
                    parts[number] += run
        assert parts == {number: texts[number] for number in members}
        seen += members
    assert sorted(seen) == [number for number, text in enumerate(texts) if text]


def test_what_is_shared_is_there_once():
    trunk = list(range(100))
    texts = [[*trunk, 7, 7], [*trunk, 8], trunk, [*trunk, *range(200, 230), 1]]
    (members,) = packs(texts, cells=1000, most=64, batch=10)
    (root,) = forest(texts, members, cells=1000, batch=10)

    assert (root.start, root.stop, len(root.members)) == (0, 100, 4)
    assert cells([root]) == 100 + 2 + 1 + 31


def test_what_costs_more_steps_than_it_saves_is_not_shared():
    few = list(range(STEP_COST - 1))
    texts = [[*few, 100], [*few, 200]]

    assert len(forest(texts, [0, 1], cells=1000, batch=256)) == 2


def test_little_is_shared_where_many_texts_have_it():
    """One more step for all of them: here it takes the time of 16 tokens, and saves 24."""
    few = list(range(4))
    texts = [[*few, 100 + number] for number in range(7)]

    (root,) = forest(texts, range(7), cells=1000, batch=256)

    assert (root.stop, len(root.children)) == (4, 7)


def test_what_would_not_fit_otherwise_is_shared():
    few = list(range(STEP_COST - 1))

    (root,) = forest([[*few, 100], [*few, 200]], [0, 1], cells=STEP_COST + 1, batch=256)

    assert root.stop == len(few)


def test_texts_that_share_less_than_half_only_fill_a_step():
    texts = [[1, 2, 3, number, 5, 6, 7, 8] for number in range(6)]

    assert [len(one) for one in packs(texts, cells=1000, most=64, batch=18)] == [3, 3]


def test_texts_that_share_nothing_only_fill_a_step():
    texts = [[number] * 30 for number in range(10)]

    assert [len(one) for one in packs(texts, cells=1000, most=64, batch=100)] == [3, 3, 3, 1]


def test_common_beginnings_are_counted():
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([], [1]) == 0
