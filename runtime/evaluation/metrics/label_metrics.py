"""Metrics of the label that a model finds likeliest, and of how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runtime.evaluation.evaluation import CalibrationBin, Confusion
from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric, row
from runtime.evaluation.metrics.text_tokens import normalized
from runtime.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

BINS = 10  # of equal width over the probability, as is usual for the expected calibration error


def probabilities(labels: Mapping[str, float]) -> dict[str, float]:
    """The labels' probabilities, which sum to 1; empty without a usable log-probability."""
    top = max(labels.values(), default=-math.inf)
    if not math.isfinite(top) or any(map(math.isnan, labels.values())):
        return {}
    powers = {label: math.exp(value - top) for label, value in labels.items()}
    total = sum(powers.values())
    return {label: power / total for label, power in powers.items()}


def chosen_label(outcome: Outcome) -> tuple[str, float] | None:
    """The likeliest label, the first of equal ones, and its probability."""
    found = probabilities(outcome.labels)
    return max(found.items(), key=lambda pair: pair[1]) if found else None


def accuracy(item: Item, outcome: Outcome) -> float | None:
    """1.0 if the likeliest label is one of the references, else 0.0."""
    chosen = chosen_label(outcome)
    return None if chosen is None or not item.references else float(chosen[0] in item.references)


def f1_counts(item: Item, outcome: Outcome) -> Floats | None:
    """Counts of each label as the right one, as the given one and as both; shape (k,).

    The labels are in alphabetical order, and k is 3 * (their number + 1): the last place of each
    third is for a right label that is none of them.
    """
    import numpy as np

    chosen = chosen_label(outcome)
    if chosen is None or not item.references:
        return None
    labels = sorted(outcome.labels)
    counts = np.zeros((3, len(labels) + 1))
    given = chosen[0]
    right = given if given in item.references else item.references[0]
    place = labels.index(right) if right in outcome.labels else len(labels)
    counts[0, place] = 1
    counts[1, labels.index(given)] = 1
    counts[2, place] = given == right
    return counts.reshape(-1)


def macro_f1_of(sums: Floats) -> Floats:
    """The mean F1 of the labels that were right or given: shape (..., k) to (...).

    scikit-learn's `f1_score(average="macro")` has the same value.
    """
    import numpy as np

    counts = sums.reshape(*sums.shape[:-1], 3, -1)  # (..., right/given/both, label)
    below = counts[..., 0, :] + counts[..., 1, :]
    f1 = 2 * counts[..., 2, :] / np.where(below > 0, below, 1)
    return f1.sum(-1) / np.maximum((below > 0).sum(-1), 1)  # type: ignore[no-any-return]


def _bin(confidence: float) -> int:
    return min(int(confidence * BINS), BINS - 1)


def calibration_counts(item: Item, outcome: Outcome) -> Floats | None:
    """By bin, the confidence less the accuracy; then 1 for the item; shape (11,)."""
    chosen = chosen_label(outcome)
    if chosen is None or not item.references:
        return None
    label, confidence = chosen
    values = [0.0] * BINS + [1.0]
    values[_bin(confidence)] = confidence - (label in item.references)
    return row(*values)


def calibration_error(sums: Floats) -> Floats:
    """The mean gap between confidence and accuracy in a bin: shape (..., 11) to (...)."""
    import numpy as np

    return np.abs(sums[..., :BINS]).sum(-1) / np.maximum(sums[..., BINS], 1)  # type: ignore[no-any-return]


def calibration(items: Sequence[Item], outcomes: Sequence[Outcome]) -> list[CalibrationBin]:
    """How often labels of about the same probability are right: 10 bins, without empty ones."""
    members: dict[int, list[tuple[float, bool]]] = {}
    for item, outcome in zip(items, outcomes, strict=True):
        chosen = chosen_label(outcome)
        if chosen is not None and item.references:
            label, confidence = chosen
            pair = (confidence, label in item.references)
            members.setdefault(_bin(confidence), []).append(pair)
    return [
        CalibrationBin(
            sum(confidence for confidence, _ in found) / len(found),
            sum(is_right for _, is_right in found) / len(found),
            len(found),
        )
        for _, found in sorted(members.items())
    ]


def confusion(
    items: Sequence[Item], outcomes: Sequence[Outcome], labels: Sequence[str]
) -> Confusion:
    """How often each label was given for each right one.

    The given label is the likeliest; without likelihoods it is the generated answer, normalised.
    Items without an outcome, and those whose right label is none of `labels`, are left out.
    """
    places = {label: place for place, label in enumerate(labels)}
    plain = {normalized(label): place for label, place in reversed(places.items())}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for item, outcome in zip(items, outcomes, strict=True):
        right = places.get(item.references[0]) if item.references else None
        chosen = chosen_label(outcome)
        if right is None or (chosen is None and outcome.answer is None):
            continue
        if chosen is not None:
            given = places.get(chosen[0], len(labels))
        else:
            given = plain.get(normalized(outcome.answer or ""), len(labels))
        counts[right][given] += 1
    return Confusion(tuple(labels), tuple(map(tuple, counts)))


LABEL_METRICS: tuple[Metric, ...] = (
    mean_metric("accuracy", "accuracy", "labels", accuracy, is_binary=True),
    Metric("macro_f1", "macro F1", "labels", f1_counts, macro_f1_of),
    Metric(
        "ece",
        "expected calibration error",
        "labels",
        calibration_counts,
        calibration_error,
        higher_is_better=False,
    ),
)
