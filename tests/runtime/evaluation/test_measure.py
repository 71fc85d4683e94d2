"""Each item is asked once; an item that fails has its reason, and the others go on."""

from __future__ import annotations

import pytest

from exporter.core.errors import EngineError
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.measure import Measured, Plan, complete, measure
from runtime.evaluation.outcome_cache import OutcomeCache
from tests.support.evaluated_models import ScriptedModel, dataset_of, questions

PLAN = Plan(("answer", "reference"))


@pytest.fixture
def cache(tmp_path):
    with OutcomeCache(tmp_path / "outcomes.sqlite") as opened:
        yield opened


def test_nothing_is_asked_twice_by_another_run(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(7))
    first, second = ScriptedModel("one"), ScriptedModel("one")

    measure(Measured(first, dataset, PLAN, cache))
    again = Measured(second, dataset, PLAN, cache)
    measure(again)

    assert sorted(first.asked) == sorted([*(f"say {n}" for n in range(7)), *["likelihoods"] * 7])
    assert second.asked == []
    assert again.cached == 7
    outcome = again.outcome(3)
    assert outcome is not None
    assert outcome.answer == "say 3"
    assert outcome.reference is not None
    assert outcome.reference.logprob == -5.0


def test_another_model_prompt_or_setting_is_asked_anew(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(2))
    measure(Measured(ScriptedModel("one"), dataset, PLAN, cache))

    other = ScriptedModel("two")
    measure(Measured(other, dataset, PLAN, cache))
    short = ScriptedModel("one")
    measure(Measured(short, dataset, Plan(PLAN.parts, AnswerSettings(3)), cache))
    polite = ScriptedModel("one")
    measure(Measured(polite, dataset_of(tmp_path, questions(2), system="Hi"), PLAN, cache))

    assert len(other.asked) == 4
    assert len(short.asked) == 2, "the likelihoods do not depend on the answers' limit"
    assert len(polite.asked) == 4


def test_a_refusal_is_of_its_item_alone_and_asked_again_by_the_next_run(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(3))
    full = ScriptedModel("one", refuses={"say 1": "exceeds the context: 9 tokens, 8 fit"})

    measured = Measured(full, dataset, PLAN, cache)
    measure(measured)

    refused = measured.outcome(1)
    assert refused is not None
    assert refused.refusal == "exceeds the context: 9 tokens, 8 fit"
    assert [measured.outcome(n).answer for n in (0, 2)] == ["say 0", "say 2"]
    later = ScriptedModel("one")
    measure(Measured(later, dataset, PLAN, cache))
    assert later.asked == ["say 1", "likelihoods"]


def test_a_model_that_dies_on_one_item_goes_on_with_the_next(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(6))
    measured = Measured(ScriptedModel("one", dies_on=frozenset(("say 2",))), dataset, PLAN, cache)

    measure(measured)

    refused = measured.outcome(2)
    assert refused is not None
    assert refused.refusal.startswith("failed: the engine ended by SIGKILL")
    assert len(list(complete([measured]))) == 6


def test_a_model_that_dies_on_all_is_given_up_and_what_it_answered_is_kept(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(30))
    deadly = frozenset(f"say {n}" for n in range(5, 30))
    model = ScriptedModel("one", dies_on=deadly, requests=1)
    measured = Measured(model, dataset, Plan(("answer",)), cache)

    with pytest.raises(EngineError, match="3 items in a row: the engine ended by SIGKILL"):
        measure(measured)

    assert len(model.asked) < 12
    well = ScriptedModel("one")
    measure(Measured(well, dataset, Plan(("answer",)), cache))
    assert "say 4" not in well.asked


def test_only_what_a_model_gives_is_asked_of_it(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(2))
    server = ScriptedModel("server", only_answers=True)
    measured = Measured(server, dataset, PLAN, cache)

    measure(measured)

    assert sorted(server.asked) == ["say 0", "say 1"]
    assert len(list(complete([measured]))) == 2


def test_ctrl_c_leaves_what_was_answered(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(20))
    model = ScriptedModel("one", requests=1, waits_at="say 9")
    measured = Measured(model, dataset, Plan(("answer",)), cache)

    def interrupt(event):
        if event.done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(measured, report=interrupt)

    model.may_answer.set()
    assert len(list(complete([measured]))) in (9, 10)
    assert len(model.asked) == 10
