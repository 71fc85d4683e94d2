"""Likelihoods of several items are asked for together, and each item gets its own."""

from __future__ import annotations

import pytest

from exporter.core.errors import OutputError
from runtime.evaluation.likelihood_groups import CHARACTERS, ITEMS, groups_of
from runtime.evaluation.measure import Measured, Plan, measure
from runtime.evaluation.outcome_cache import OutcomeCache
from tests.support.evaluated_models import GroupedModel, ScriptedModel, dataset_of, questions

ROWS = [
    {"prompt": f"say {n}", "chosen": f"yes {n}" * (n % 3 + 1), "rejected": f"no {n}"}
    for n in range(ITEMS + 3)
]
PLAN = Plan(("reference", "rejected"))


@pytest.fixture
def cache(tmp_path):
    with OutcomeCache(tmp_path / "outcomes.sqlite") as opened:
        yield opened


def test_a_group_gives_what_the_items_alone_give(tmp_path, cache):
    dataset = dataset_of(tmp_path, ROWS)
    alone = Measured(ScriptedModel("alone"), dataset, PLAN, cache)
    together = Measured(GroupedModel("together"), dataset, PLAN, cache)

    measure(alone)
    measure(together)

    count = len(ROWS)
    assert sorted(map(len, together.model.groups)) == [count - ITEMS, ITEMS]
    assert [together.outcome(n) for n in range(count)] == [alone.outcome(n) for n in range(count)]
    assert together.outcome(2).reference.logprob == -len(ROWS[2]["chosen"])
    assert together.outcome(2).rejected.logprob == -len(ROWS[2]["rejected"])


def test_an_evaluation_that_goes_on_groups_items_as_before(tmp_path):
    dataset = dataset_of(tmp_path, ROWS)
    missing = dict.fromkeys(range(5, len(ROWS)), ("reference",))

    assert list(groups_of(iter(dataset), missing)) == [
        list(range(5, ITEMS)),
        list(range(ITEMS, len(ROWS))),
    ]


def test_what_begins_a_prompt_again_is_not_counted(tmp_path):
    """A long beginning that all share is computed once: it does not split them."""
    long = "x" * (CHARACTERS // 2)
    shared = [{"question": f"{long} {n}", "answer": "a"} for n in range(4)]
    apart = [{"question": f"{n} {long}", "answer": "a"} for n in range(4)]
    asked = dict.fromkeys(range(4), ("reference",))

    assert list(groups_of(iter(dataset_of(tmp_path, shared)), asked)) == [[0, 1, 2, 3]]
    assert list(groups_of(iter(dataset_of(tmp_path, apart)), asked)) == [[0], [1], [2], [3]]


def test_an_item_that_is_refused_leaves_the_others(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(4))
    model = GroupedModel("one", refuses={"say 1": "exceeds the context: 9 tokens, 8 fit"})
    measured = Measured(model, dataset, Plan(("reference",)), cache)

    measure(measured)

    assert measured.outcome(1).refusal == "exceeds the context: 9 tokens, 8 fit"
    assert [measured.outcome(n).reference.logprob for n in (0, 2, 3)] == [-5.0] * 3


def test_a_group_that_fails_is_asked_item_by_item(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(4))
    model = GroupedModel("one", dies_on=frozenset(("say 1",)))
    measured = Measured(model, dataset, Plan(("reference",)), cache)

    measure(measured)

    assert model.asked == ["likelihoods"] * 4
    assert all(measured.outcome(n).reference is not None for n in range(4))


def test_several_outcomes_are_kept_all_or_none(cache):
    with pytest.raises(TypeError):
        cache.put_all({b"key": {"a": 1}, b"other": {"b": object()}})
    assert cache.get(b"key") is None
    cache.connection.execute("pragma query_only = on")
    with pytest.raises(OutputError, match="cannot be written"):
        cache.put_all({b"key": {"a": 1}})
    cache.connection.execute("pragma query_only = off")
    cache.put_all({b"key": {"a": 1}, b"other": {"a": 2}})
    assert cache.get(b"other") == {"a": 2}
