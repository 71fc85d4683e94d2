"""Asks a model for the outcomes of a dataset's items, and keeps them in the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from exporter.core.errors import DecantError, EngineError
from exporter.core.events import Progress, Report, silent
from runtime.evaluation.divergence_plan import DivergencePlan
from runtime.evaluation.evaluated_model import AnswerSettings, EvaluatedModel
from runtime.evaluation.item import Item
from runtime.evaluation.likelihood_groups import GROUPED, TakesGroups, groups_of
from runtime.evaluation.metric import Needs
from runtime.evaluation.outcome import Likelihoods, Outcome, outcome_of
from runtime.evaluation.outcome_cache import OutcomeCache, key_of

LOOK_S = 0.1  # seconds between two reports of the progress
EMPTY = {field.name: getattr(Outcome(), field.name) for field in fields(Outcome)}
"""The fields of an outcome without any part."""
FAILURES = 3
"""Items that may fail one after the other before the model is given up."""


class Items(Protocol):
    """The items of a dataset, read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Item: ...

    def __iter__(self) -> Iterator[Item]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of outcomes that the metrics need."""

    parts: tuple[Needs, ...]
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    labels: tuple[str, ...] = ()

    def parts_of(self, model: EvaluatedModel) -> tuple[Needs, ...]:
        """The parts that this model gives alone: divergences need another model, too."""
        if model.why_no_likelihoods():
            return tuple(part for part in self.parts if part == "answer")
        return tuple(part for part in self.parts if part != "divergences")


@dataclass
class Measured:
    """One model's outcomes: those in the cache, and the refusals of this run."""

    model: EvaluatedModel
    items: Items
    plan: Plan
    cache: OutcomeCache
    divergences: DivergencePlan | None = None
    """None where the model's distributions are not compared."""
    refusals: dict[int, str] = field(default_factory=dict)
    """By the item's number. They are not cached: another context may change them."""
    cached: int = 0
    """Items that were complete before this run."""
    seconds: float = 0.0

    def key(self, item: Item, part: Needs) -> bytes:
        """The key of a part of an item's outcome."""
        question: dict[str, Any] = {"part": part, "messages": list(item.messages)}
        if part == "answer":
            question["settings"] = self.plan.settings.as_request()
        else:
            question["texts"] = texts_of(item, part, self.plan.labels)
        return key_of(self.model.identity, question)

    def missing(self, number: int) -> tuple[Needs, ...]:
        """The parts of an item that are not in the cache."""
        item, plan = self.items[number], self.divergences
        found: tuple[Needs, ...] = tuple(
            part
            for part in self.plan.parts_of(self.model)
            if is_wanted(item, part) and self.cache.get(self.key(item, part)) is None
        )
        if plan is None or not plan.is_missing(self.model, item, number):
            return found
        return (*(part for part in found if part != "reference"), "divergences")

    def outcome(self, number: int) -> Outcome | None:
        """An item's outcome; None while a part is missing."""
        if number in self.refusals:
            return Outcome(refusal=self.refusals[number])
        item, found = self.items[number], Outcome()
        for part in self.plan.parts_of(self.model):
            if not is_wanted(item, part):
                continue
            kept = self.cache.get(self.key(item, part))
            if kept is None:
                return None
            found = merged(found, kept, part)
        return self.with_divergences(found, item, number)

    def with_divergences(self, found: Outcome, item: Item, number: int) -> Outcome | None:
        """The outcome with its divergences; None while they are missing."""
        plan = self.divergences
        if plan is None or self.model is plan.reference or not item.references:
            return found
        kept = self.cache.get(plan.key(self.model, item))
        if kept is None:
            return None if number in plan.kept else found
        return replace(found, divergences=outcome_of(kept).divergences)


def is_wanted(item: Item, part: Needs) -> bool:
    """Whether an item has the texts that the part needs."""
    if part == "answer":
        return bool(item.messages)
    return bool(item.rejected) if part == "rejected" else bool(item.references)


def texts_of(item: Item, part: Needs, labels: Sequence[str]) -> list[str]:
    """The texts whose likelihoods the part holds."""
    if part == "labels":
        return list(labels)
    return [item.rejected if part == "rejected" else item.references[0]]


def merged(found: Outcome, kept: dict[str, Any], part: Needs) -> Outcome:
    """An outcome with one more part."""
    other = outcome_of(kept)
    if part == "answer":
        return replace(
            other, reference=found.reference, rejected=found.rejected, labels=found.labels
        )
    if part == "reference":
        return replace(found, reference=other.reference)
    if part == "rejected":
        return replace(found, rejected=other.rejected)
    return replace(found, labels=other.labels)


def measure(measured: Measured, *, report: Report = silent) -> None:
    """Ask the model for all missing parts. Raises EngineError once several items in a row failed.

    Ctrl-C ends it at once; the cache keeps what was answered.
    """
    began = time.monotonic()
    count = len(measured.items)
    todo = {number: missing for number in range(count) if (missing := measured.missing(number))}
    measured.cached = count - len(todo)
    try:
        for parts in (("answer",), ("divergences", "reference", "rejected", "labels")):
            wanted = {
                number: tuple(part for part in missing if part in parts)
                for number, missing in todo.items()
            }
            if any(wanted.values()):
                ask_all(measured, wanted, report)
    finally:
        measured.seconds += time.monotonic() - began


def ask_all(measured: Measured, wanted: Mapping[int, Sequence[Needs]], report: Report) -> None:
    """Ask for parts of the items by their numbers, as many at once as the model takes."""
    wanted = {number: parts for number, parts in wanted.items() if parts}
    name, total = measured.model.name, len(wanted)
    is_answers = any("answer" in parts for parts in wanted.values())
    task = f"{name}: {'answers' if is_answers else 'likelihoods'}"
    todo = Todo(works(measured, wanted, Failures(name)))
    pool = ThreadPoolExecutor(measured.model.requests, thread_name_prefix="item")
    try:
        waiting = {pool.submit(todo.run) for _ in range(measured.model.requests)}
        while waiting:
            report(Progress(task, todo.done, total, "steps"))
            ended, waiting = wait(waiting, LOOK_S, return_when=FIRST_COMPLETED)
            raise_first(ended)
        report(Progress(task, total, total, "steps"))
    finally:
        todo.is_over = True
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Todo:
    """The requests that are left; several threads take them, each one after the other."""

    works: Iterator[tuple[Sequence[int], Callable[[], None]]]
    done: int = 0
    """Items that were asked for."""
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Work until nothing is left. Raises the errors of the work."""
        while True:
            with self.lock:
                found = None if self.is_over else next(self.works, None)
                if found is None:
                    return
            try:
                found[1]()
            except BaseException:
                self.is_over = True
                raise
            with self.lock:
                self.done += len(found[0])


def works(
    measured: Measured, wanted: Mapping[int, Sequence[Needs]], failures: Failures
) -> Iterator[tuple[Sequence[int], Callable[[], None]]]:
    """The requests: the numbers of each one's items, and the work."""
    model = measured.model
    grouped = {n: parts for n, parts in wanted.items() if GROUPED.issuperset(parts)}
    if not isinstance(model, TakesGroups):
        grouped = {}
    for number, parts in wanted.items():
        if number not in grouped:
            yield (number,), ask_item(measured, number, parts, failures)
    if grouped and isinstance(model, TakesGroups):
        for numbers in groups_of(iter(measured.items), grouped):
            chosen = {number: grouped[number] for number in numbers}
            yield numbers, ask_group(measured, model, chosen, failures)


def raise_first(ended: set[Future[None]]) -> None:
    """Raise the error of work that failed."""
    for one in ended:
        one.result()


@dataclass
class Failures:
    """Counts items that failed one after the other."""

    name: str
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, error: DecantError | None) -> None:
        """Count a failure; a success sets the count to 0. Raises EngineError for too many."""
        with self.lock:
            self.count = self.count + 1 if error else 0
            if error and self.count >= FAILURES:
                raise EngineError(
                    f"{self.name} failed on {self.count} items in a row: {error.message}",
                    hint=f"what was answered is kept; {error.hint or 'run the command again'}",
                ) from error


def ask_item(
    measured: Measured, number: int, parts: Sequence[Needs], failures: Failures
) -> Callable[[], None]:
    """The work for one item: asks for its missing parts and keeps them."""

    def work() -> None:
        try:
            item = measured.items[number]
            for part in parts:
                if number in measured.refusals:
                    break
                if part == "divergences":
                    found = ask_divergences(measured, item, number)
                else:
                    found = ask_part(measured, item, part)
                if found.refusal:
                    measured.refusals[number] = found.refusal
                elif part != "divergences":
                    measured.cache.put(measured.key(item, part), sparse(found))
        except EngineError as error:
            measured.refusals[number] = f"failed: {error.message.splitlines()[0]}"
            failures.note(error)
        else:
            failures.note(None)

    return work


def ask_group(
    measured: Measured,
    model: TakesGroups,
    wanted: Mapping[int, Sequence[Needs]],
    failures: Failures,
) -> Callable[[], None]:
    """The work for several items: asks for their likelihoods, and keeps all of them at once.

    If that fails, the items are asked one by one, to find the one that fails.
    """

    def work() -> None:
        labels = measured.plan.labels
        left = [number for number in wanted if number not in measured.refusals]
        items = {number: measured.items[number] for number in left}
        texts = {
            number: {part: texts_of(item, part, labels) for part in wanted[number]}
            for number, item in items.items()
        }
        try:
            found = model.likelihoods_of(
                [(items[n].messages, [text for some in texts[n].values() for text in some])
                 for n in left]
            )  # fmt: skip
        except EngineError:
            for number in left:
                ask_item(measured, number, wanted[number], failures)()
            return
        kept = {}
        for number, likelihoods in zip(left, found, strict=True):
            if isinstance(likelihoods, str):
                measured.refusals[number] = likelihoods
                continue
            rest = iter(likelihoods)
            for part, some in texts[number].items():
                outcome = part_of(part, some, [next(rest) for _ in some])
                kept[measured.key(items[number], part)] = sparse(outcome)
        measured.cache.put_all(kept)
        failures.note(None)

    return work


def ask_part(measured: Measured, item: Item, part: Needs) -> Outcome:
    """Ask the model for one part. Raises EngineError."""
    model = measured.model
    if part == "answer":
        began = time.monotonic()
        found = model.answer(item.messages, measured.plan.settings)
        return replace(found, seconds=time.monotonic() - began)
    texts = texts_of(item, part, measured.plan.labels)
    likelihoods = model.likelihoods(item.messages, texts)
    if isinstance(likelihoods, str):
        return Outcome(refusal=likelihoods)
    return part_of(part, texts, likelihoods)


def part_of(part: Needs, texts: Sequence[str], likelihoods: Sequence[Likelihoods]) -> Outcome:
    """The outcome that holds the likelihoods of a part's texts."""
    if part == "labels":
        pairs = zip(texts, likelihoods, strict=True)
        return Outcome(labels={text: one.logprob for text, one in pairs})
    if part == "rejected":
        return Outcome(rejected=likelihoods[0])
    return Outcome(reference=likelihoods[0])


def ask_divergences(measured: Measured, item: Item, number: int) -> Outcome:
    """Ask for an item's divergences, and keep them with the likelihoods that come along.

    Raises EngineError.
    """
    plan = measured.divergences
    assert plan is not None, "the part is missing only with a plan"
    found = plan.ask(measured.model, item, number)
    if not found.refusal:
        alone = Outcome(reference=found.reference)
        measured.cache.put(measured.key(item, "reference"), sparse(alone))
        if measured.model is not plan.reference:
            apart = Outcome(divergences=found.divergences)
            measured.cache.put(plan.key(measured.model, item), sparse(apart))
    return found


def sparse(outcome: Outcome) -> dict[str, Any]:
    """The outcome's fields that differ from the defaults."""
    found = {
        name: value for name, plain in EMPTY.items() if (value := getattr(outcome, name)) != plain
    }
    return {
        name: asdict(value) if isinstance(value, Likelihoods) else value
        for name, value in found.items()
    }


def complete(measured: Sequence[Measured]) -> Iterator[int]:
    """The numbers of the items for which every model has an outcome."""
    if not measured:
        return
    for number in range(len(measured[0].items)):
        if all(one.outcome(number) is not None for one in measured):
            yield number
