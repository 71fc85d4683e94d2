"""Token sequences as trees of shared beginnings, so that each beginning is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

STEP_COST = 16  # a step's fixed time, as the number of tokens computed in that time
LEAST = (1, 2, 4, 8, 16, 32)
"""The fewest tokens that sequences share in a node: all are tried, for the fastest trees."""
Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that the members share, after the run of the parent node."""

    start: int
    stop: int
    """The run is `tokens[start:stop]` of each member."""
    members: tuple[int, ...]
    """Numbers of sequences; the first one's place in the cache holds the run."""
    children: tuple[Node, ...] = ()
    """The continuations of the longer members."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """Sequences in the order of their tokens."""

    numbers: Sequence[int]
    lengths: Sequence[int]
    shared: Sequence[int]
    """How many first tokens each shares with the sequence before it."""

    def trees(self, least: int, span: tuple[int, int], start: int = 0) -> Iterator[Node]:
        """The trees of the sequences in `span` from `start` on; they share `least` tokens or none.

        The sequences are equal before `start`, and those that end there come first.
        """
        place, end = span
        while place < end and self.lengths[place] <= start:
            place += 1
        while place < end:
            after, stop = place + 1, self.lengths[place]
            while after < end and self.shared[after] - start >= least:
                stop = min(stop, self.shared[after])
                after += 1
            members = tuple(self.numbers[place:after])
            children = self.trees(least, (place, after), stop) if len(members) > 1 else ()
            yield Node(start, stop, members, tuple(children))
            place = after


def packs(sequences: Sequence[Tokens], *, cells: int, most: int, batch: int) -> list[list[int]]:
    """Numbers of the sequences that are computed together; equal beginnings stand side by side.

    cells: tokens that the cache holds; most: sequences at once; batch: tokens that one step of
    the model takes. A sequence that shares less than half of its tokens joins others only to
    fill such a step, as each token attends to the whole cache. Empty sequences are left out.
    """
    order = sorted((n for n, tokens in enumerate(sequences) if tokens), key=lambda n: sequences[n])
    found: list[list[int]] = []
    used = 0
    for number in order:
        tokens = sequences[number]
        shared = common(sequences[found[-1][-1]], tokens) if found else 0
        cost = len(tokens) - shared
        room = cells if shared >= cost else min(cells, batch)
        if found and len(found[-1]) < most and used + cost <= room:
            found[-1].append(number)
            used += cost
        else:
            found.append([number])
            used = len(tokens)
    return found


def forest(
    sequences: Sequence[Tokens], members: Sequence[int], *, cells: int, batch: int
) -> list[Node]:
    """The trees of a pack's members that take the least time and fit into `cells` cells."""
    lengths = [len(sequences[number]) for number in members]
    pairs = pairwise(sequences[number] for number in members)
    ordered = Sorted(members, lengths, [0, *(common(one, other) for one, other in pairs)])
    span = (0, len(members))
    tried = [list(ordered.trees(least, span)) for least in LEAST]
    fitting = [roots for roots in tried if sum(map(tokens_of, roots)) <= cells] or tried[:1]
    return min(fitting, key=lambda roots: duration(roots, batch))


def duration(roots: Sequence[Node], batch: int) -> int:
    """The time to compute the trees, as a number of tokens."""
    counts = [sum(node.stop - node.start for node in level) for level in levels(roots)]
    return sum(counts) + STEP_COST * sum(-(-count // batch) for count in counts)


def tokens_of(node: Node) -> int:
    """The number of tokens in a tree."""
    return node.stop - node.start + sum(map(tokens_of, node.children))


def levels(roots: Sequence[Node]) -> Iterator[Sequence[Node]]:
    """The nodes by their depth: each level needs only those before it."""
    level = list(roots)
    while level:
        yield level
        level = [child for node in level for child in node.children]


def common(one: Tokens, other: Tokens) -> int:
    """The number of equal tokens at the beginning of two sequences."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])
