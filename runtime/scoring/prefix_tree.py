"""Token sequences as trees of what they share, so that a shared beginning is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAST_SHARED = 16  # tokens; a step of the model for fewer costs more than it saves
Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that its members have in common, after what their parents have."""

    start: int
    stop: int
    """The run is `tokens[start:stop]` of each member."""
    members: tuple[int, ...]
    """Numbers of sequences; the first one's place in the cache holds the run."""
    children: tuple[Node, ...] = ()
    """How the members that are longer go on."""


def packs(sequences: Sequence[Tokens], *, cells: int, most: int, batch: int) -> list[list[int]]:
    """Numbers of the sequences that are computed together, those with equal beginnings first.

    cells: tokens that the cache holds; most: sequences at once; batch: tokens that one step of
    the model takes. Sequences that share nothing are only put together to fill such a step: each
    token pays attention to everything in the cache. Empty sequences are left out.
    """
    order = sorted((n for n, tokens in enumerate(sequences) if tokens), key=lambda n: sequences[n])
    found: list[list[int]] = []
    used = 0
    for number in order:
        tokens = sequences[number]
        shared = common(sequences[found[-1][-1]], tokens) if found else 0
        shared = shared if shared >= LEAST_SHARED else 0
        room = cells if shared else min(cells, batch)
        # `forest` leaves less than LEAST_SHARED of what is shared to be computed again
        cost = min(len(tokens), len(tokens) - shared + LEAST_SHARED)
        if found and len(found[-1]) < most and used + cost <= room:
            found[-1].append(number)
            used += cost
        else:
            found.append([number])
            used = len(tokens)
    return found


def forest(sequences: Sequence[Tokens], members: Sequence[int], start: int = 0) -> Iterator[Node]:
    """The trees of sorted members, from position `start` on."""
    group: list[int] = []
    shared = 0
    for number in members:
        if len(sequences[number]) <= start:
            continue
        with_last = common(sequences[group[-1]], sequences[number]) if group else 0
        if group and with_last - start >= LEAST_SHARED:
            shared = min(shared, with_last)
            group.append(number)
            continue
        if group:
            yield grown(sequences, group, start, shared)
        group, shared = [number], len(sequences[number])
    if group:
        yield grown(sequences, group, start, shared)


def grown(sequences: Sequence[Tokens], group: Sequence[int], start: int, stop: int) -> Node:
    """One tree, whose trunk is `start:stop`."""
    children = tuple(forest(sequences, group, stop)) if len(group) > 1 else ()
    return Node(start, stop, tuple(group), children)


def levels(roots: Sequence[Node]) -> Iterator[Sequence[Node]]:
    """The nodes by their depth: each level needs only those before it."""
    level = list(roots)
    while level:
        yield level
        level = [child for node in level for child in node.children]


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])
