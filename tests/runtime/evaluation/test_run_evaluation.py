"""Whole evaluations of scripted models: figures, comparisons, groups, cases, early ends."""

from __future__ import annotations

import pytest

from exporter.core.errors import EngineError
from runtime.evaluation.data.dataset import Dataset
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.run_evaluation import ModelGroup, Run, plan_of, token_limit, with_answers
from runtime.evaluation.summary import Comparison
from tests.support.evaluated_models import ScriptedModel, dataset_of, questions


@pytest.fixture
def cache(tmp_path):
    with OutcomeCache(tmp_path / "outcomes.sqlite") as opened:
        yield opened


def run_of(
    dataset: Dataset, cache: OutcomeCache, *models: ScriptedModel, names=("exact_match", "loss"),
    **options,
) -> Run:  # fmt: skip
    metrics = tuple(METRICS[name] for name in names)
    comparison = Comparison(metrics, models[0].name if len(models) > 1 else "", **options)
    plan = plan_of(dataset, metrics, AnswerSettings())
    return Run([ModelGroup((model,)) for model in models], dataset, plan, comparison, cache)


def test_the_better_model_wins_the_items_that_it_alone_answers_rightly(tmp_path, cache):
    rows = [{**row, "half": "ab"[n % 2]} for n, row in enumerate(questions(40))]
    dataset = dataset_of(tmp_path, rows)
    base = ScriptedModel("base", {f"say {n}": "no" for n in range(30)})
    tune = ScriptedModel("tune", {"say 39": "no"})
    run = run_of(dataset, cache, base, tune)

    run.ask()
    summary, found = run.results(id="x", began="now")

    assert found.is_complete
    assert found.scores["base"]["exact_match"].value == pytest.approx(10 / 40)
    assert found.scores["tune"]["exact_match"].value == pytest.approx(39 / 40)
    won = found.differences["tune"]["exact_match"]
    assert (won.verdict, won.wins, won.losses, won.ties) == ("better", 30, 1, 9)
    assert found.groups["half"]["a"]["tune"]["exact_match"].n == 20
    assert found.groups["half"]["b"]["tune"]["exact_match"].value == pytest.approx(19 / 20)
    cases = list(summary.cases())
    assert len(cases) == 40
    assert (cases[0].question, cases[0].verdicts) == ("say 39", {"tune": "loss"})
    assert cases[0].answers == {"base": "say 39", "tune": "no"}
    assert cases[-1].verdicts == {"tune": "win"}
    assert found.models[1].tokens_per_second == 10.0


def test_equal_models_show_no_difference(tmp_path, cache):
    run = run_of(dataset_of(tmp_path, questions(30)), cache, ScriptedModel("a"), ScriptedModel("b"))

    run.ask()
    _, found = run.results(id="x", began="now")

    assert found.differences["b"]["exact_match"].words == "no difference shown at n = 30"
    assert found.differences["b"]["loss"].verdict == "no difference shown"


def test_labels_are_chosen_by_likelihood(tmp_path, cache):
    rows = [{"text": f"text {n}", "label": ("good", "bad")[n % 2]} for n in range(20)]
    dataset = dataset_of(tmp_path, rows)
    model = ScriptedModel("one", likely={"good": -0.1, "bad": -3.0})
    run = run_of(dataset, cache, model, names=("accuracy", "macro_f1", "ece"))

    run.ask()
    summary, found = run.results(id="x", began="now")

    assert dataset.facts.task == "labels"
    assert found.scores["one"]["accuracy"].value == 0.5
    matrix = found.confusion["one"]
    assert sum(map(sum, matrix.counts)) == 20
    assert all(row[matrix.labels.index("good")] == 10 for row in matrix.counts)
    assert found.calibration["one"][0].n == 20
    assert next(iter(summary.cases())).answers == {"one": "good"}
    assert all(asked == "likelihoods" for asked in model.asked)


def test_a_server_without_likelihoods_is_measured_by_its_answers(tmp_path, cache):
    rows = [{"text": f"text {n}", "label": ("good", "bad")[n % 2]} for n in range(20)]
    dataset = dataset_of(tmp_path, rows)
    server = ScriptedModel("server", {f"text {n}": "Good." for n in range(20)}, only_answers=True)
    names = tuple(metric.name for metric in with_answers((METRICS["accuracy"],)))
    run = run_of(dataset, cache, server, names=names)

    run.ask()
    _, found = run.results(id="x", began="now")

    assert found.scores["server"]["exact_match"].value == 0.5
    assert "accuracy" not in found.scores["server"]


def test_after_an_early_end_it_covers_what_was_answered(tmp_path, cache):
    dataset = dataset_of(tmp_path, questions(30))
    dies = ScriptedModel("two", dies_on=frozenset(f"say {n}" for n in range(10, 30)), requests=1)
    run = run_of(dataset, cache, ScriptedModel("one"), dies, names=("exact_match",))

    run.ask()
    assert isinstance(run.ended_by, EngineError)
    _, found = run.results(id="x", began="now")

    assert not found.is_complete
    assert 10 <= found.data.items <= 13
    assert set(found.scores) == {"one", "two"}


def test_without_any_answer_there_is_no_report(tmp_path, cache):
    deadly = frozenset(f"say {n}" for n in range(4))
    run = run_of(dataset_of(tmp_path, questions(4)), cache, ScriptedModel("one", dies_on=deadly))

    run.ask()

    assert isinstance(run.ended_by, EngineError)


def test_the_limit_of_an_answer_lets_the_longest_reference_through(tmp_path):
    rows = [{"question": "q", "answer": "a" * length} for length in (3, 90)]
    assert token_limit(dataset_of(tmp_path, rows)) == 90
    rows = [{"question": "q", "answer": "a" * length} for length in (3, 9000)]
    assert token_limit(dataset_of(tmp_path, rows)) == 512
