"""Which metrics are computed, and a user's own functions."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from exporter.core.errors import InputError
from runtime.evaluation.item import Item
from runtime.evaluation.metrics.metric_choice import (
    DEFAULTS,
    METRICS,
    NEEDS,
    available,
    chosen_metrics,
    left_out,
    metrics_for,
)
from runtime.evaluation.outcome import Outcome

ITEM = Item("seven", 7, references=("yes",), columns={"topic": "x"})


def names(task: str, *changes: str, short: bool = True) -> list[str]:
    return [metric.name for metric in chosen_metrics(task, short, changes, trust=False)]


@pytest.mark.parametrize("task", DEFAULTS)
@pytest.mark.parametrize("short", [True, False])
def test_every_kind_of_data_has_metrics_that_it_can_compute(task, short):
    found = metrics_for(task, short)

    assert found
    assert all(METRICS[name].needs in NEEDS[task] for name in found)
    assert METRICS[found[0]].higher_is_better is not None


def test_short_answers_are_matched_and_long_ones_overlap():
    assert metrics_for("answers", references_are_short=True)[0] == "exact_match"
    assert metrics_for("answers", references_are_short=False)[0] == "rougeL"


def test_metrics_are_added_and_removed():
    assert names("answers", "-exact_match", "bleu", "-length") == ["f1", "loss", "bleu"]


def test_a_typo_gets_the_near_names():
    with pytest.raises(InputError, match="no metric 'exactmatch'") as caught:
        names("answers", "exactmatch")
    assert "exact_match" in caught.value.hint
    with pytest.raises(InputError) as caught:
        names("answers", "-rouge")
    assert "rougeL" in caught.value.hint


def test_a_metric_that_the_data_cannot_have_is_refused():
    with pytest.raises(InputError, match="needs rejected answers"):
        names("answers", "preference")


def test_at_least_one_metric_is_left():
    with pytest.raises(InputError, match="no metric is left"):
        names("labels", "-accuracy", "-macro_f1", "-ece")


def test_a_missing_library_costs_a_default_and_refuses_a_wish(monkeypatch):
    for module in ("sacrebleu", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)

    assert names("answers", short=False)[0] == "loss"
    assert len(left_out("answers", references_are_short=False)) == 3
    removed = ("-bleu", "-chrf", "f1")
    assert len(left_out("answers", references_are_short=False, changes=removed)) == 1
    assert "sacrebleu" in available(METRICS["bleu"])
    with pytest.raises(InputError, match="sacrebleu") as caught:
        names("answers", "bleu")
    assert caught.value.hint == "pip install 'decant-llm[eval]'"


def test_with_all_libraries_none_is_left_out():
    assert not left_out("answers", references_are_short=False)


@pytest.fixture
def own(tmp_path):
    """Turns code into a metric, by its function `score`."""

    def load(code: str, *, trust: bool = True):
        file = tmp_path / "mine.py"
        file.write_text(code)
        return chosen_metrics("answers", True, [f"{file}:score"], trust)[-1]

    return load


def test_a_users_function_is_a_metric(own):
    metric = own(
        "def score(answer: str, references: list, item: dict) -> bool:\n"
        "    return answer in references and item['columns']['topic'] == 'x'\n"
        "score.higher_is_better = False\n"
    )

    assert (metric.name, metric.title) == ("mine.py:score", "score")
    assert metric.is_binary
    assert metric.higher_is_better is False
    assert metric.statistics(ITEM, Outcome("yes")).tolist() == [1, 1]
    assert metric.statistics(ITEM, Outcome("no")).tolist() == [0, 1]
    assert metric.statistics(ITEM, Outcome(None)) is None


def test_a_users_function_may_leave_an_item_out(own):
    assert own("score = lambda *_: None").statistics(ITEM, Outcome("yes")) is None


def test_numbers_of_numpy_are_numbers(own):
    metric = own("import numpy\nscore = lambda *_: numpy.float32(0.5)")

    assert np.array_equal(metric.statistics(ITEM, Outcome("yes")), [0.5, 1])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(*_): raise KeyError('topic')", "item seven: KeyError: 'topic'"),
        ("def score(): return 1", "item seven: TypeError"),
        ("import sys\ndef score(*_): sys.exit(3)", "item seven: SystemExit: 3"),
        ("def score(*_): return float('nan')", "nan for item seven"),
        ("def score(*_): return 'good'", "'good' for item seven"),
        ("def score(*_): return '1'", "'1' for item seven"),
        ("def score(*_): return [1]", r"\[1\] for item seven"),
    ],
)
def test_what_a_users_function_does_wrong_names_the_item(own, code, message):
    metric = own(code)

    with pytest.raises(InputError, match=message):
        metric.statistics(ITEM, Outcome("yes"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(*_): return 1", "has no function 'score'"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("def score(:", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_without_the_function_is_refused(own, code, message):
    with pytest.raises(InputError, match=message):
        own(code)


def test_code_runs_only_if_it_is_trusted(own, tmp_path):
    marker = tmp_path / "ran"

    with pytest.raises(InputError, match="is Python code"):
        own(f"open({str(marker)!r}, 'w')\nscore = len", trust=False)

    assert not marker.exists()


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        chosen_metrics("answers", True, [f"{tmp_path}/none.py:score"], trust=True)
