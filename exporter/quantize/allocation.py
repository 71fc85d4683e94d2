"""Distributes the bytes of a file among its tensors, so that the sum of the costs is least.

Each tensor has options of different size and cost. A step from one option of its lower convex hull
to the next takes bytes and saves cost. The steps that save most per byte are taken first, which is
the Lagrangian's optimum for separable costs; further steps that fit use the rest of the budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.core.ggml_types import GGMLType


@dataclass(frozen=True, slots=True)
class Option:
    """A type that a tensor can have."""

    type: GGMLType
    nbytes: int
    cost: float
    """The loss of the type, in a unit that is the same for all tensors; 0 or more."""


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, GGMLType] | None:
    """The type of each tensor; None if even the smallest options take more than `budget` bytes."""
    hulls = {name: hull(found) for name, found in options.items()}
    place = dict.fromkeys(hulls, 0)
    left = budget - sum(found[0].nbytes for found in hulls.values())
    if left < 0:
        return None
    steps = [
        (slope(before, after), name, number)
        for name, found in hulls.items()
        for number, (before, after) in enumerate(itertools.pairwise(found))
    ]
    for _, name, number in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        found = hulls[name]
        nbytes = found[number + 1].nbytes - found[number].nbytes
        if place[name] == number and nbytes <= left:
            place[name], left = number + 1, left - nbytes
    chosen = {name: hulls[name][number] for name, number in place.items()}
    fill(chosen, options, left)
    return {name: option.type for name, option in chosen.items()}


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of cost over bytes, from the smallest to the best."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.nbytes, one.cost, one.type.number)):
        if found and option.cost >= found[-1].cost:
            continue  # larger and no better
        while len(found) > 1 and slope(found[-1], option) >= slope(found[-2], found[-1]):
            found.pop()
        found.append(option)
    return found


def slope(before: Option, after: Option) -> float:
    """The cost that each byte saves between two options."""
    if after.nbytes == before.nbytes:
        return float("inf")
    return (before.cost - after.cost) / (after.nbytes - before.nbytes)


def fill(chosen: dict[str, Option], options: Mapping[str, Sequence[Option]], left: int) -> None:
    """Spend the remaining bytes on the steps that save most, also to options off the hull."""
    while True:
        best: tuple[float, str, Option] | None = None
        for name, now in chosen.items():
            for option in options[name]:
                saved, nbytes = now.cost - option.cost, option.nbytes - now.nbytes
                if saved > 0 and nbytes <= left and (best is None or saved > best[0]):
                    best = saved, name, option
        if best is None:
            return
        _, name, option = best
        left -= option.nbytes - chosen[name].nbytes
        chosen[name] = option
