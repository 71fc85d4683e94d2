"""Divergences in an evaluation: who is asked when, what is kept, and the figures."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.core.errors import InputError
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.item import Item
from runtime.evaluation.metrics.divergence_metrics import divergence_counts, quantile_of
from runtime.evaluation.metrics.metric_choice import METRICS, with_divergences
from runtime.evaluation.outcome import Outcome, outcome_of
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.run_evaluation import ModelGroup, Run, plan_of
from runtime.evaluation.summary import Comparison
from tests.support.evaluated_models import ComparedModel, ScriptedModel, dataset_of, questions

LOSS, KL, KL_P99 = METRICS["loss"], METRICS["kl"], METRICS["kl_p99"]
ITEM = Item("1", 1, references=("a",))


@pytest.fixture
def cache(tmp_path):
    with OutcomeCache(tmp_path / "outcomes.sqlite") as opened:
        yield opened


def run_of(dataset, cache, *models, against):
    metrics = (LOSS, KL, KL_P99)
    plan = plan_of(dataset, metrics, AnswerSettings())
    groups = [ModelGroup((model,)) for model in models]
    return Run(groups, dataset, plan, Comparison(metrics, against), cache)


def test_the_higher_precision_is_asked_first_and_the_report_keeps_the_order(tmp_path, cache):
    small, whole = ComparedModel("small", nats=0.5), ComparedModel("whole")
    run = run_of(dataset_of(tmp_path, questions(6)), cache, small, whole, against="whole")

    run.ask()
    _, found = run.results(id="x", began="now")

    assert sorted(whole.kept) == [0, 1, 2, 3, 4, 5]
    assert [model.name for model in found.models] == ["small", "whole"]
    assert found.scores["small"]["kl"].value == pytest.approx(1.0)
    assert found.scores["small"]["kl"].n == 6
    assert "kl" not in found.scores["whole"], "it is what they are compared with"
    assert "kl" not in found.differences["small"]
    assert found.scores["whole"]["loss"].n == 6, "likelihoods come along"
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing is left"


def test_nothing_is_asked_twice_and_one_more_model_has_the_first_asked_again(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(6))
    run_of(dataset, cache, ComparedModel("whole"), ComparedModel("a"), against="whole").ask()
    again = ComparedModel("whole"), ComparedModel("a", nats=9.0)

    run_of(dataset, cache, *again, against="whole").ask()
    assert [model.asked for model in again] == [[], []]
    more = ComparedModel("whole"), ComparedModel("a"), ComparedModel("b", nats=1.0)
    run = run_of(dataset, cache, *more, against="whole")
    run.ask()
    _, found = run.results(id="x", began="now")

    assert [len(model.asked) for model in more] == [6, 0, 6]
    assert found.scores["b"]["kl"].value == pytest.approx(2.0)


def test_items_without_room_are_told_and_have_the_other_metrics(tmp_path, cache):
    whole, small = ComparedModel("whole", room=4), ComparedModel("small", nats=1.0)
    run = run_of(dataset_of(tmp_path, questions(9)), cache, whole, small, against="whole")

    run.ask()
    _, found = run.results(id="x", began="now")

    assert found.scores["small"]["kl"].n == 4
    assert found.scores["small"]["loss"].n == 9
    assert any("that of 4 items" in note for note in found.data.notes)


def test_a_model_without_distributions_is_left_out(tmp_path, cache):
    models = ComparedModel("whole"), ScriptedModel("server"), ComparedModel("small", nats=1.0)
    run = run_of(dataset_of(tmp_path, questions(5)), cache, *models, against="whole")

    run.ask()
    _, found = run.results(id="x", began="now")

    assert [name for name in found.scores if "kl" in found.scores[name]] == ["small"]


def test_the_folder_is_gone_when_a_model_dies(tmp_path, cache):
    class Dying(ComparedModel):
        def divergences(self, messages, text, number):
            raise KeyboardInterrupt

    whole, small = ComparedModel("whole"), Dying("small")
    run = run_of(dataset_of(tmp_path, questions(5)), cache, whole, small, against="whole")

    run.ask()

    assert run.ended_by is not None
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_after_an_early_end_items_without_divergences_are_left_out(tmp_path, cache):
    """Their likelihoods are there, from an earlier evaluation."""

    class Dying(ComparedModel):
        def divergences(self, messages, text, number):
            if number >= 3:
                raise KeyboardInterrupt
            return super().divergences(messages, text, number)

    dataset = dataset_of(tmp_path, questions(8))
    plan = plan_of(dataset, (LOSS,), AnswerSettings())
    models = ComparedModel("whole"), Dying("small", nats=1.0, requests=1)
    groups = [ModelGroup((model,)) for model in models]
    Run(groups, dataset, plan, Comparison((LOSS,), "whole"), cache).ask()
    run = run_of(dataset, cache, *models, against="whole")

    run.ask()
    _, found = run.results(id="x", began="now")

    assert not found.is_complete
    assert found.data.items == 3
    assert found.scores["small"]["loss"].n == found.scores["small"]["kl"].n == 3


def test_the_percentile_is_numpys_within_two_percent():
    random = np.random.default_rng(0)
    values = np.exp(random.normal(-6, 2, 50_000))
    counts = divergence_counts(ITEM, Outcome(divergences=tuple(values)))

    assert float(quantile_of(counts)) == pytest.approx(np.quantile(values, 0.99), rel=0.02)
    assert quantile_of(np.stack([counts, 0 * counts])).shape == (2,)
    assert divergence_counts(ITEM, Outcome()) is None
    assert divergence_counts(ITEM, Outcome(divergences=(0.0, 1e9))).sum() == 2


def test_divergences_survive_the_cache():
    outcome = Outcome(divergences=(0.5, 1e-9))

    assert outcome_of(outcome.as_json()) == outcome


def test_the_metrics_are_shown_where_they_are_usual_or_asked_for():
    def names(metrics, changes=(), **how):
        return [metric.name for metric in with_divergences(metrics, changes, **how)]

    usual = {"is_comparable": True, "is_usual": True}
    assert names((LOSS,), **usual) == ["loss", "kl", "kl_p99"]
    assert names((LOSS, KL), **usual) == ["loss", "kl", "kl_p99"]
    assert names((LOSS,), ("-kl",), **usual) == ["loss", "kl_p99"]
    assert names((LOSS,), is_comparable=True, is_usual=False) == ["loss"]
    with pytest.raises(InputError, match="only one"):
        names((LOSS, KL), is_comparable=False, is_usual=False)
