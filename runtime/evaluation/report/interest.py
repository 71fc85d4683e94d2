"""Keeps the cases of a stream that a reader wants to see, and the figures for plots."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from runtime.evaluation.evaluation import Case, Evaluation
from runtime.evaluation.report.figure_text import metric_facts

LISTED = 500
"""Items that a page lists."""
RESERVED = 200
"""Places for wins, and for losses, before the rest is filled."""
TEXT_MAX = 4000
"""Characters of a text that a page shows."""
NAME_MAX = 300
"""Characters of an id or of a column's value."""
POINTS_MAX = 50_000
"""Items whose loss and length are kept for plots: half a megabyte a model."""
LOSS = "loss"
"""The name of the metric that the scatter plot needs."""
KINDS = ("loss", "win", "tie")
"""The verdicts, the most interesting first."""


@dataclass(slots=True)
class Gathering:
    """The cases to list, in bounded memory, and the figures of all."""

    evaluation: Evaluation
    count: int = 0
    kept: dict[str, list[tuple[float, int, Case]]] = field(default_factory=dict)
    """By verdict: a heap whose first entry is the least interesting."""
    lengths: dict[str, array[int]] = field(default_factory=dict)
    """By model: words of each answer."""
    losses: dict[str, tuple[array[float], array[float]]] = field(default_factory=dict)
    """By model, except the one compared with: that one's losses, and the model's."""
    tallies: dict[str, dict[str, int]] = field(default_factory=dict)
    """By model, except the one compared with: its numbers of wins, losses and ties."""

    def add(self, case: Case) -> None:
        """Take one more case into account."""
        self.count += 1
        for model, verdict in case.verdicts.items():
            tally = self.tallies.setdefault(model, dict.fromkeys(("win", "loss", "tie"), 0))
            tally[verdict] = tally.get(verdict, 0) + 1
        if self.count <= POINTS_MAX:
            self.add_points(case)
        heap = self.kept.setdefault(worst_verdict(case), [])
        entry = (interest(self.evaluation, case), -self.count, shortened_case(case))
        if len(heap) < LISTED:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def add_points(self, case: Case) -> None:
        for model, answer in case.answers.items():
            if case.values.get(model):  # a refusal has no values, and its words are no answer
                self.lengths.setdefault(model, array("l")).append(len(answer.split()))
        theirs = case.values.get(self.evaluation.against, {}).get(LOSS, math.nan)
        for model, values in case.values.items():
            ours = values.get(LOSS, math.nan)
            if model != self.evaluation.against and math.isfinite(ours) and math.isfinite(theirs):
                pair = self.losses.setdefault(model, (array("d"), array("d")))
                pair[0].append(theirs)
                pair[1].append(ours)

    def listed(self) -> list[Case]:
        """The cases to show, at most LISTED: losses, wins and ties, each the worst first."""
        sizes = {kind: len(self.kept.get(kind, ())) for kind in KINDS}
        taken = {kind: min(sizes[kind], RESERVED) for kind in ("loss", "win")}
        for kind in KINDS:
            free = LISTED - sum(taken.values())
            taken[kind] = min(sizes[kind], taken.get(kind, 0) + free)
        cases = []
        for kind in KINDS:
            ordered = sorted(self.kept.get(kind, ()), key=lambda entry: entry[:2], reverse=True)
            cases += [case for _, _, case in ordered[: taken[kind]]]
        return cases


def worst_verdict(case: Case) -> str:
    """The verdict that a case is listed under: a loss, else a win, else a tie."""
    return next((kind for kind in KINDS if kind in case.verdicts.values()), "tie")


def interest(evaluation: Evaluation, case: Case) -> float:
    """How much a reader wants to see a case: the worse the deciding figure, the more.

    Where a model is compared with another, the gap between the two counts first.
    """
    name = evaluation.deciding
    sign = 1.0 if metric_facts(evaluation, name).higher_is_better is False else -1.0
    found = {
        model: sign * values[name]
        for model, values in case.values.items()
        if math.isfinite(values.get(name, math.nan))
    }
    theirs = found.pop(evaluation.against, None)
    if not found:
        return math.inf if len(case.answers) > len(case.values) else 0.0
    worst = max(found.values())
    if theirs is None or worst_verdict(case) == "tie":
        return worst
    return max(abs(ours - theirs) for ours in found.values())


def worst_first(evaluation: Evaluation, case: Case) -> tuple[int, float]:
    """A key that sorts the worst case first: losses before wins before ties."""
    return KINDS.index(worst_verdict(case)), -interest(evaluation, case)


def shortened_case(case: Case) -> Case:
    """The case with texts of a length that a page can hold."""
    return replace(
        case,
        id=cut(case.id, NAME_MAX),
        question=cut(case.question),
        reference=cut(case.reference),
        answers={model: cut(answer) for model, answer in case.answers.items()},
        columns=shortened_columns(case.columns),
    )


def shortened_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The first columns, each value short."""
    most = 20  # more do not fit below an item
    return {
        cut(name, NAME_MAX): cut(value, NAME_MAX) for name, value in list(columns.items())[:most]
    }


def cut(text: str, most: int = TEXT_MAX) -> str:
    """The text up to a number of characters, with a note of how many more there are."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text) - most:,} more characters)"
