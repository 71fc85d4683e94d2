"""Metrics of labels and likelihoods, against scikit-learn and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporter.core.errors import InputError
from runtime.evaluation.item import Item
from runtime.evaluation.metrics.label_metrics import calibration, confusion, probabilities
from runtime.evaluation.metrics.likelihood_metrics import agreement, agreement_with
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.outcome import Likelihoods, Outcome
from runtime.evaluation.statistics import item_values, statistics_of

LABELS = ("red", "green", "blue", "never")


def item(right: str, number: int = 1) -> Item:
    return Item(str(number), number, references=(right,))


def sure(label: str, probability: float = 0.7) -> Outcome:
    """An outcome that finds a label so likely."""
    rest = (1 - probability) / (len(LABELS) - 1)
    return Outcome(
        labels={name: math.log(probability if name == label else rest) - 5 for name in LABELS}
    )


def figure(name: str, items: list[Item], outcomes: list[Outcome]) -> float:
    metric = METRICS[name]
    rows = statistics_of(metric, items, outcomes)
    return float(metric.combine(rows[np.isfinite(rows).all(1)].sum(0)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.lasting
def test_macro_f1_and_confusion_are_scikit_learns(seed):
    from sklearn.metrics import confusion_matrix, f1_score

    random = np.random.default_rng(seed)
    right = [str(label) for label in random.choice(["red", "green", "blue"], 40)]
    given = [str(label) for label in random.choice(["red", "green"], 40)]
    items, outcomes = [item(label) for label in right], [sure(label) for label in given]

    assert figure("macro_f1", items, outcomes) == pytest.approx(
        f1_score(right, given, average="macro", zero_division=0)
    )
    assert figure("accuracy", items, outcomes) == np.mean(np.array(right) == np.array(given))
    counts = confusion(items, outcomes, LABELS).counts
    assert [row[:-1] for row in counts] == [
        tuple(row) for row in confusion_matrix(right, given, labels=LABELS).tolist()
    ]


@pytest.mark.lasting
def test_a_right_label_that_is_none_of_them_counts_as_in_scikit_learn():
    from sklearn.metrics import f1_score

    right, given = ["red", "teal", "blue"], ["red", "red", "blue"]
    items, outcomes = [item(label) for label in right], [sure(label) for label in given]

    assert figure("accuracy", items, outcomes) == pytest.approx(2 / 3)
    assert figure("macro_f1", items, outcomes) == pytest.approx(
        f1_score(right, given, average="macro", zero_division=0)
    )


def test_answers_stand_in_for_likelihoods_in_the_confusion():
    items = [item("red", 1), item("blue", 2), item("blue", 3), item("blue", 4)]
    outcomes = [Outcome("Red."), Outcome("I say red"), sure("blue"), Outcome(refusal="too long")]

    found = confusion(items, outcomes, ("red", "blue"))

    assert found.counts == ((1, 0, 0), (0, 1, 1))


def test_confidence_is_compared_with_accuracy_by_bins():
    items = [item("red", n) for n in range(4)]
    outcomes = [sure("red", 0.72), sure("red", 0.78), sure("blue", 0.75), sure("red", 1 - 1e-12)]

    first, last = calibration(items, outcomes)

    assert (first.n, last.n) == (3, 1)
    assert first.confidence == pytest.approx(0.75)
    assert first.accuracy == pytest.approx(2 / 3)
    assert figure("ece", items, outcomes) == pytest.approx(3 / 4 * (0.75 - 2 / 3))


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"red": math.nan, "blue": -1.0},
        {"red": -1.0, "blue": math.nan},
        {"red": -math.inf, "blue": -math.inf},
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "ece"])
def test_without_usable_likelihoods_a_label_has_no_value(name, labels):
    assert METRICS[name].statistics(item("red"), Outcome(labels=labels)) is None


def test_an_impossible_label_has_no_probability():
    assert probabilities({"a": -1.0, "b": -math.inf}) == {"a": 1.0, "b": 0.0}


def test_labels_that_vary_are_an_error_of_the_data():
    outcomes = [Outcome(labels={"a": -1.0}), Outcome(labels={"a": -1.0, "b": -2.0})]

    with pytest.raises(InputError, match="labels are not the same"):
        statistics_of(METRICS["macro_f1"], [item("a"), item("a")], outcomes)


def likely(logprob: float, tokens: int, *greedy: int) -> Likelihoods:
    return Likelihoods(logprob, tokens, greedy)


def test_losses_are_means_over_all_tokens():
    items = [item("abc", 1), item("é", 2)]
    outcomes = [Outcome(reference=likely(-3, 1)), Outcome(reference=likely(-3, 5))]

    assert figure("loss", items, outcomes) == pytest.approx(1)
    assert figure("perplexity", items, outcomes) == pytest.approx(math.e)
    assert figure("bits_per_byte", items, outcomes) == pytest.approx(6 / math.log(2) / 5)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
@pytest.mark.parametrize("name", ["loss", "perplexity", "bits_per_byte", "preference", "margin"])
def test_a_likelihood_that_is_no_number_is_left_out(name, logprob):
    outcome = Outcome(reference=likely(logprob, 2), rejected=likely(-1, 2))

    assert METRICS[name].statistics(item("a"), outcome) is None


def test_an_enormous_loss_gives_a_finite_perplexity():
    rows = statistics_of(METRICS["perplexity"], [item("a")], [Outcome(reference=likely(-9999, 1))])

    assert np.isfinite(item_values(METRICS["perplexity"], rows)).all()


def test_a_chosen_answer_is_preferred_by_its_sum_or_its_mean():
    outcome = Outcome(reference=likely(-6, 6), rejected=likely(-4, 2))

    values = {
        name: figure(name, [item("a")], [outcome])
        for name in ("preference", "preference_norm", "margin")
    }

    assert values == {"preference": 0, "preference_norm": 1, "margin": -2}


def test_agreement_is_the_share_of_equal_greedy_tokens():
    ours = Outcome(reference=likely(-1, 4, 5, 6, 7, 8))
    theirs = Outcome(reference=likely(-1, 4, 5, 6, 0, 8))
    shorter = Outcome(reference=likely(-1, 2, 5, 6))
    metric = agreement_with({"1": theirs, "2": shorter})

    assert agreement(ours, theirs) == 0.75
    assert agreement(ours, shorter) is None
    assert agreement(ours, Outcome("text")) is None
    assert metric.statistics(item("a", 1), ours).tolist() == [3, 4]
    assert metric.statistics(item("a", 2), ours) is None
    assert metric.statistics(item("a", 3), ours) is None
