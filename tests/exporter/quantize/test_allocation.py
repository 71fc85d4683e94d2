"""Bytes shared out among tensors, compared with every possible choice."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from exporter.core.ggml_types import GGMLType
from exporter.quantize.allocation import Option, allocate, hull

KINDS = [GGMLType.by_name(name) for name in ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]


def random_options(generator: random.Random, tensors: int) -> dict[str, list[Option]]:
    """Options whose cost mostly, but not always, falls with their size."""
    return {
        f"t{number}": [
            Option(kind, (level + 2) * size, generator.uniform(0.5, 1.5) * 4.0**-level)
            for level, kind in enumerate(KINDS)
        ]
        for number in range(tensors)
        for size in [generator.randint(1, 9)]
    }


def best_cost(options: dict[str, list[Option]], budget: int) -> float:
    return min(
        sum(option.cost for option in choice)
        for choice in itertools.product(*options.values())
        if sum(option.nbytes for option in choice) <= budget
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_nearly_the_best_and_never_above_the_budget(seed):
    generator = random.Random(seed)
    options = random_options(generator, tensors=6)
    least = sum(min(one.nbytes for one in found) for found in options.values())
    most = sum(max(one.nbytes for one in found) for found in options.values())
    budget = generator.randint(least, most)

    chosen = allocate(options, budget)

    assert chosen is not None
    taken = [next(o for o in found if o.type == chosen[name]) for name, found in options.items()]
    assert sum(option.nbytes for option in taken) <= budget
    costliest = max(option.cost for found in options.values() for option in found)
    best = best_cost(options, budget)
    assert best <= sum(option.cost for option in taken) <= best + 0.2 * costliest


def test_the_rest_of_a_budget_is_spent_on_what_still_fits():
    small, large = KINDS[0], KINDS[-1]
    options = {
        "wide": [Option(small, 10, 8.0), Option(large, 110, 1.0)],
        "narrow": [Option(small, 10, 1.0), Option(large, 20, 0.5)],
    }

    assert allocate(options, 40) == {"wide": small, "narrow": large}
    assert allocate(options, 120) == {"wide": large, "narrow": small}
    assert allocate(options, 19) is None


def test_a_larger_type_that_loses_more_is_never_chosen():
    worse = [Option(KINDS[0], 10, 1.0), Option(KINDS[1], 20, 2.0), Option(KINDS[2], 30, 0.1)]

    assert [option.type for option in hull(worse)] == [KINDS[0], KINDS[2]]
    assert allocate({"t": worse}, 29) == {"t": KINDS[0]}


def test_a_byte_that_saves_less_than_the_next_is_not_on_the_hull():
    options = [Option(KINDS[0], 10, 1.0), Option(KINDS[1], 20, 0.9), Option(KINDS[2], 30, 0.0)]

    assert [option.type for option in hull(options)] == [KINDS[0], KINDS[2]]
    assert math.isclose(sum(o.cost for o in hull(options)), 1.0)
