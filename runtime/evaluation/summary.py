"""Computes the results of an evaluation from the outcomes of its models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from statistics import median
from typing import TYPE_CHECKING, Any

from runtime.evaluation.evaluation import (
    CalibrationBin,
    Case,
    Confusion,
    DataFacts,
    Evaluation,
    MetricFacts,
    ModelFacts,
    Scores,
)
from runtime.evaluation.item import Item
from runtime.evaluation.measure import Items, Measured
from runtime.evaluation.metric import Difference, Metric
from runtime.evaluation.metrics.label_metrics import calibration, chosen_label, confusion
from runtime.evaluation.metrics.likelihood_metrics import agreement_with
from runtime.evaluation.outcome import Outcome
from runtime.evaluation.statistics import (
    difference,
    interval,
    item_statistics,
    item_values,
    item_verdicts,
    stacked,
)

if TYPE_CHECKING:
    from runtime.evaluation.metric import Floats

GROUPS_MAX = 12
"""The most values of a column by which results are grouped unasked."""
GROUP_LEAST = 5
"""Items that each group must have on average for that."""
GROUP_METRICS = 3  # the number of metrics, from the first, by which groups are compared
VALUE_MAX = 200  # characters of a column's value that names a group


@dataclass(frozen=True, slots=True)
class Comparison:
    """The settings by which results are computed."""

    metrics: tuple[Metric, ...]
    """The first decides who wins an item."""
    against: str = ""
    """The model that the others are compared with; empty for none."""
    by: tuple[str, ...] | None = None
    """Columns to group by; None groups by those with few values."""
    seed: int = 0
    with_agreement: bool = False
    """Whether to count how often the models' likeliest tokens equal those of `against`."""


@dataclass
class ModelTable:
    """One model's statistics over the items that all models have answered."""

    measured: Measured
    numbers: Sequence[int]
    """The items' numbers in the data."""
    rows: dict[str, Floats] = field(default_factory=dict)
    """By metric, shape (n, k); a row of NaN for an item without statistics."""
    speeds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    answers: list[tuple[Item, Outcome]] = field(default_factory=list)
    """For labels: the items and outcomes that confusion and calibration count."""

    @property
    def name(self) -> str:
        return self.measured.model.name

    def fill(self, metrics: Sequence[Metric], *, keeps_labels: bool) -> None:
        """Compute every item's statistics. Raises InputError if their size varies."""
        found: dict[str, list[Floats | None]] = {metric.name: [] for metric in metrics}
        for number in self.numbers:
            item, outcome = self.measured.items[number], self.measured.outcome(number)
            assert outcome is not None, "only complete items are counted"
            self.count(outcome)
            for metric in metrics:
                found[metric.name].append(item_statistics(metric, item, outcome))
            if keeps_labels and not outcome.refusal:
                few = Item(item.id, item.line, (), item.references)
                self.answers.append((few, Outcome(outcome.answer, labels=outcome.labels)))
        self.rows = {metric.name: stacked(metric, found[metric.name]) for metric in metrics}

    def count(self, outcome: Outcome) -> None:
        """Count an outcome's costs and refusals."""
        if outcome.refusal:
            self.refusals[outcome.refusal.partition(":")[0]] += 1
            return
        self.cut_off += outcome.finish == "length"
        if outcome.tokens_per_second:
            self.speeds.append(outcome.tokens_per_second)
        if outcome.first_token_s:
            self.firsts.append(outcome.first_token_s)

    def facts(self) -> ModelFacts:
        """The model's facts, with its costs and refusals."""
        known = ModelFacts(name=self.name, **self.measured.model.facts())
        return replace(
            known,
            tokens_per_second=median(self.speeds) if self.speeds else 0.0,
            first_token_s=median(self.firsts) if self.firsts else 0.0,
            seconds=self.measured.seconds,
            cached=self.measured.cached,
            refusals=dict(self.refusals),
            cut_off=self.cut_off,
        )


@dataclass
class Summary:
    """All figures of an evaluation, and its cases on demand."""

    data: DataFacts
    items: Items
    tables: Sequence[ModelTable]
    comparison: Comparison
    columns: Mapping[str, Sequence[str]]
    """The columns to group by: each item's value, in the order of the tables' rows."""

    @property
    def others(self) -> list[ModelTable]:
        """The tables of the models that are compared."""
        against = self.comparison.against
        return [table for table in self.tables if against and table.name != against]

    @property
    def reference(self) -> ModelTable | None:
        """The table of the model that others are compared with."""
        against = self.comparison.against
        return next((table for table in self.tables if table.name == against), None)

    def evaluation(self, **known: Any) -> Evaluation:
        """The results; `known` gives the other fields of Evaluation."""
        metrics = self.comparison.metrics
        return Evaluation(
            data=self.data,
            models=[table.facts() for table in self.tables],
            metrics=[MetricFacts(m.name, m.title, m.unit, m.higher_is_better) for m in metrics],
            deciding=metrics[0].name,
            against=self.comparison.against,
            scores=self.scores(metrics),
            differences={table.name: self.differences(table) for table in self.others},
            groups=self.groups(),
            confusion=self.confusion(),
            calibration=self.calibration(),
            **known,
        )

    def scores(self, metrics: Sequence[Metric], rows: Sequence[int] | None = None) -> Scores:
        """Every model's figures; rows: the rows of the tables that count; None for all."""
        seed = self.comparison.seed
        return {
            table.name: {
                metric.name: found
                for metric in metrics
                if (found := interval(metric, chosen(table.rows[metric.name], rows), seed)).n
            }
            for table in self.tables
        }

    def differences(self, table: ModelTable) -> dict[str, Difference]:
        """How one model differs from the one compared with, by metric."""
        reference = self.reference
        assert reference is not None
        return {
            metric.name: found
            for metric in self.comparison.metrics
            if metric.judged_by not in table.rows
            and same_width(table.rows[metric.name], reference.rows[metric.name])
            and (
                found := difference(
                    metric,
                    table.rows[metric.name],
                    reference.rows[metric.name],
                    self.comparison.seed,
                )
            ).n
        }

    def groups(self) -> dict[str, dict[str, Scores]]:
        """The first metrics' figures by column and value."""
        metrics = self.comparison.metrics[:GROUP_METRICS]
        found: dict[str, dict[str, Scores]] = {}
        for column, values in self.columns.items():
            places: dict[str, list[int]] = {}
            for place, value in enumerate(values):
                places.setdefault(value, []).append(place)
            found[column] = {
                value: self.scores(metrics, rows) for value, rows in sorted(places.items())
            }
        return found

    def confusion(self) -> dict[str, Confusion]:
        """Each model's matrix, for data of labels."""
        if not self.data.labels:
            return {}
        return {
            table.name: confusion(*unzipped(table.answers), self.data.labels)
            for table in self.tables
        }

    def calibration(self) -> dict[str, Sequence[CalibrationBin]]:
        """Each model's reliability, for data of labels."""
        found = {table.name: calibration(*unzipped(table.answers)) for table in self.tables}
        return {name: bins for name, bins in found.items() if bins}

    def cases(self) -> Iterator[Case]:
        """The items, the worst first: lost ones, then by the value of the deciding metric."""
        metrics = self.comparison.metrics
        values = {
            table.name: {m.name: item_values(m, table.rows[m.name]) for m in metrics}
            for table in self.tables
        }
        verdicts = self.verdicts()
        numbers = self.tables[0].numbers
        for place in self.order(values, verdicts):
            item = self.items[numbers[place]]
            yield Case(
                id=item.id,
                line=item.line,
                question=item.question,
                reference=item.references[0] if item.references else "",
                answers={table.name: shown(table, numbers[place]) for table in self.tables},
                values={
                    model: {
                        name: float(rows[place])
                        for name, rows in named.items()
                        if not isnan(rows[place])
                    }
                    for model, named in values.items()
                },
                verdicts={model: words[place] for model, words in verdicts.items() if words[place]},
                columns=item.columns,
            )

    def verdicts(self) -> dict[str, list[str]]:
        """For each model except the one compared with: win, loss or tie by item."""
        deciding, reference = self.comparison.metrics[0], self.reference
        return {
            table.name: item_verdicts(deciding, table.rows[deciding.name], rows)
            for table in self.others
            if reference is not None
            and same_width(table.rows[deciding.name], rows := reference.rows[deciding.name])
        }

    def order(
        self, values: Mapping[str, Mapping[str, Floats]], verdicts: Mapping[str, Sequence[str]]
    ) -> list[int]:
        """The places of the tables' rows, the worst items of the last model first."""
        deciding = self.comparison.metrics[0]
        last = (self.others or list(self.tables))[-1].name
        rows = values[last][deciding.name]
        sign = -1.0 if deciding.higher_is_better is False else 1.0
        won = {"loss": 0, "tie": 1, "win": 2}
        words = verdicts.get(last, ())

        def key(place: int) -> tuple[int, float, int]:
            value = float(rows[place])
            known = float("inf") if isnan(value) else value
            return (won.get(words[place], 1) if words else 1, sign * known, place)

        return sorted(range(len(rows)), key=key)


def shown(table: ModelTable, number: int) -> str:
    """A model's result for an item, in words."""
    outcome = table.measured.outcome(number)
    if outcome is None:
        return ""
    if outcome.refusal:
        return f"[{outcome.refusal}]"
    label = chosen_label(outcome)
    if label is not None:
        return label[0]
    return outcome.answer or ""


def chosen(rows: Floats, places: Sequence[int] | None) -> Floats:
    """Some of a table's rows: shape (n, k) to (places, k)."""
    return rows if places is None else rows[list(places)]


def same_width(ours: Floats, theirs: Floats) -> bool:
    """Whether two models' statistics, of shape (n, k), have the same k."""
    return bool(ours.shape[1] == theirs.shape[1])


def unzipped(pairs: Sequence[tuple[Item, Outcome]]) -> tuple[list[Item], list[Outcome]]:
    return [item for item, _ in pairs], [outcome for _, outcome in pairs]


def summarize(
    data: DataFacts, measured: Sequence[Measured], numbers: Sequence[int], comparison: Comparison
) -> Summary:
    """Compute the statistics of all models over the items with these numbers."""
    items = measured[0].items
    tables = [ModelTable(one, numbers) for one in measured]
    if comparison.with_agreement:
        reference = next(one for one in measured if one.model.name == comparison.against)
        known = {items[n].id: found for n in numbers if (found := reference.outcome(n))}
        metrics = (*comparison.metrics, agreement_with(known))
        comparison = replace(comparison, metrics=metrics)
    for table in tables:
        own = comparison.metrics
        if comparison.with_agreement and table.name == comparison.against:
            own = own[:-1]  # with itself a model always agrees
        table.fill(own, keeps_labels=bool(data.labels))
        for metric in comparison.metrics[len(own) :]:
            table.rows[metric.name] = stacked(metric, [None] * len(numbers))
    columns = grouped_columns(items, numbers, comparison.by)
    return Summary(data, items, tables, comparison, columns)


def grouped_columns(
    items: Items, numbers: Sequence[int], by: Sequence[str] | None
) -> dict[str, list[str]]:
    """The values of the columns by which results are grouped.

    by: the columns' names; None takes those with few values. A column that an item lacks has an
    empty value there.
    """
    found: dict[str, list[str]] = {}
    for place, number in enumerate(numbers):
        row = items[number].columns
        for name in row if by is None else by:
            if name not in found:
                found[name] = [""] * place
        for name, values in found.items():
            values.append(str(row.get(name, ""))[:VALUE_MAX])
        if by is None:
            found = {name: values for name, values in found.items() if is_few(values)}
            if place >= GROUPS_MAX * GROUP_LEAST and not found:
                return {}
    if by is not None:
        return found
    return {
        name: values
        for name, values in found.items()
        if 1 < len(set(values)) <= min(GROUPS_MAX, len(values) // GROUP_LEAST)
    }


def is_few(values: Sequence[str]) -> bool:
    """Whether a column may still have few values; checked at every 256th row only, to save time."""
    if len(values) % 256:
        return True
    return len(set(values)) <= GROUPS_MAX
