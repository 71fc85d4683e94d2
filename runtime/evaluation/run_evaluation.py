"""Runs an evaluation: asks each model, then computes results over the items that all answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from statistics import median
from typing import Any

from exporter.core.errors import DecantError, EngineError
from exporter.core.events import Report, Step, Warn, silent
from runtime.evaluation.data.dataset import Dataset
from runtime.evaluation.divergence_plan import (
    KEPT_NBYTES,
    DivergencePlan,
    divergence_plan,
    kept_place,
)
from runtime.evaluation.evaluated_model import AnswerSettings, EvaluatedModel, HasDistributions
from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.judge import judge_models
from runtime.evaluation.kept_items import KeptItems
from runtime.evaluation.local_model import LocalEngines
from runtime.evaluation.measure import Measured, Plan, complete, measure
from runtime.evaluation.metric import Metric, Needs
from runtime.evaluation.metrics.metric_choice import METRICS
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.summary import Comparison, Summary, summarize

SAMPLED = 200
"""Items by which lengths are judged."""
SHORT_WORDS = 5  # of the median reference
LEAST_TOKENS, MOST_TOKENS = 32, 512
"""The range of an answer's default limit, in tokens."""


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """Models that are asked through the same engines."""

    models: tuple[EvaluatedModel, ...]
    engines: LocalEngines | None = None
    """None for a server."""


@dataclass
class Run:
    """One evaluation: its models, its data and its outcomes."""

    groups: Sequence[ModelGroup]
    dataset: Dataset
    plan: Plan
    comparison: Comparison
    cache: OutcomeCache
    judge: EvaluatedModel | None = None
    notes: tuple[str, ...] = ()
    measured: list[Measured] = field(default_factory=list)
    divergences: DivergencePlan | None = field(init=False)
    """None if no metric needs them."""
    ended_by: BaseException | None = None
    """Ctrl-C, or the error that ended it early."""
    began: float = field(default_factory=time.monotonic)
    items: KeptItems = field(init=False)

    def __post_init__(self) -> None:
        self.items = KeptItems(self.dataset)
        is_needed = "divergences" in self.plan.parts
        against = self.comparison.against if is_needed else ""
        self.divergences = divergence_plan(self.models, against, self.cache)

    @property
    def models(self) -> list[EvaluatedModel]:
        return [model for group in self.groups for model in group.models]

    def ask(self, *, report: Report = silent) -> None:
        """Ask all models for what the cache lacks.

        An error or Ctrl-C ends the asking; it is kept in `ended_by`, and what was answered counts.
        """
        try:
            with ExitStack() as stack:
                if self.divergences is not None:
                    place = stack.enter_context(kept_place(self.cache.path.parent))
                    for group in self.groups:
                        if group.engines is not None:
                            group.engines.kept = place
                for group in self.groups:
                    if group.engines is not None:
                        stack.callback(group.engines.stop)
                groups = sorted(self.groups, key=self.comes_later)
                self.start_early(groups[0])
                for group, after in zip_longest(groups, groups[1:]):
                    self.start_early(after, group)
                    self.ask_group(group, report)
        except (KeyboardInterrupt, DecantError) as error:
            self.ended_by = error
        self.measured.sort(key=lambda one: self.models.index(one.model))
        if self.divergences is not None and self.divergences.has_no_room:
            self.notes = (*self.notes, little_room(len(self.divergences.kept)))

    def comes_later(self, group: ModelGroup) -> bool:
        """Whether the group with the reference model is asked before this one."""
        plan = self.divergences
        return plan is not None and plan.reference not in group.models

    def start_early(self, group: ModelGroup | None, before: ModelGroup | None = None) -> None:
        """Start the engines of a group, if they seem to be needed, while another one is asked."""
        if group is None or group.engines is None:
            return
        found = Measured(group.models[0], self.items, self.plan, self.cache)
        ends = {0, len(self.items) - 1}
        if missing := {part for number in ends for part in found.missing(number)}:
            group.engines.start_early(
                before.engines.nbytes if before and before.engines else 0,
                generates=any(self.items[number].messages for number in ends),
                scores=missing != {"answer"},
            )

    def ask_group(self, group: ModelGroup, report: Report) -> None:
        """Ask the models of one group, and end its engines. Raises EngineError."""
        plan = self.divergences
        models: Sequence[EvaluatedModel] = group.models
        if plan is not None:
            models = sorted(models, key=lambda model: model is not plan.reference)
        with ExitStack() as stack:
            if group.engines is not None:
                stack.callback(group.engines.stop)
            for model in models:
                found = Measured(model, self.items, self.plan, self.cache)
                if plan is not None and isinstance(model, HasDistributions):
                    found.divergences = plan
                self.measured.append(found)
                report(Step(f"asking {model.name}"))
                measure(found, report=report)

    def results(self, *, report: Report = silent, **known: Any) -> tuple[Summary, Evaluation]:
        """The results over the items that every model has answered.

        After an early end, `counted` leaves out some models. known: further fields of Evaluation.
        Raises EngineError if no item is left.
        """
        measured, numbers = self.counted()
        if not numbers:
            raise EngineError("no item was answered", hint="run the same command again")
        comparison = self.comparison
        names = [one.model.name for one in measured]
        if comparison.against not in names or len(names) == 1:
            comparison = replace(comparison, against="", with_agreement=False)
        data = replace(
            self.dataset.facts,
            items=len(numbers),
            notes=(*self.dataset.facts.notes, *self.notes),
        )
        report(Step("computing the metrics"))
        summary = summarize(data, measured, numbers, comparison)
        if comparison.against and self.judge is not None and self.ended_by is None:
            known["judge"] = self.judged(self.judge, summary, numbers, report)
        evaluation = summary.evaluation(
            is_complete=self.ended_by is None,
            seconds=time.monotonic() - self.began,
            **known,
        )
        return summary, evaluation

    def counted(self) -> tuple[list[Measured], Sequence[int]]:
        """The models and the items that the results cover.

        After an early end: the models that answered all items if there are several, else the models
        that answered any item, and the items that all of these answered.
        """
        count = len(self.dataset)
        if self.ended_by is None:
            return self.measured, range(count)
        done = {one.model.name: list(complete([one])) for one in self.measured}
        whole = [one for one in self.measured if len(done[one.model.name]) == count]
        if len(whole) > 1:
            return whole, range(count)
        measured = [one for one in self.measured if done[one.model.name]]
        return measured, list(complete(measured))

    def judged(
        self, judge: EvaluatedModel, summary: Summary, numbers: Sequence[int], report: Report
    ) -> Sequence[Any]:
        """The judge's verdicts; none, with a warning, if it cannot judge."""
        reference = summary.reference
        assert reference is not None
        others = [table.measured for table in summary.others]
        report(Step(f"asking the judge {judge.name}"))
        try:
            return judge_models(judge, reference.measured, others, numbers, report=report)
        except EngineError as error:
            report(Warn(f"no judge: {error.message}"))
            return ()


def little_room(count: int) -> str:
    """The note on items whose distributions were not kept."""
    return (
        f"the KL divergence is that of {count} items: the distributions of more would take more"
        f" than {KEPT_NBYTES >> 30} GiB, or than half of the free disk"
    )


def parts_for(metrics: Sequence[Metric]) -> tuple[Needs, ...]:
    """The parts of outcomes that metrics need."""
    order: tuple[Needs, ...] = ("answer", "reference", "rejected", "labels", "divergences")
    needed = {metric.needs for metric in metrics}
    if needed & {"rejected", "divergences"}:
        needed.add("reference")
    return tuple(part for part in order if part in needed)


def with_answers(metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """The metrics for models of which some give no likelihoods: answers are compared, too."""
    if any(metric.needs == "answer" for metric in metrics):
        return metrics
    return (METRICS["exact_match"], *metrics)


def are_short(dataset: Dataset) -> bool:
    """Whether half of the references have few words."""
    words = [
        len(item.references[0].split()) for item in islice(dataset, SAMPLED) if item.references
    ]
    return bool(words) and median(words) <= SHORT_WORDS


def token_limit(dataset: Dataset) -> int:
    """The limit of an answer: as many tokens as the longest reference has characters.

    Text has some four characters a token, so that a right answer is not cut off.
    """
    lengths = [len(reference) for item in islice(dataset, SAMPLED) for reference in item.references]
    return min(MOST_TOKENS, max(LEAST_TOKENS, max(lengths, default=MOST_TOKENS)))


def plan_of(dataset: Dataset, metrics: Sequence[Metric], settings: AnswerSettings) -> Plan:
    """The plan for a dataset's metrics."""
    return Plan(parts_for(metrics), settings, tuple(dataset.labels))
