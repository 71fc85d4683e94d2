"""The items whose distributions are compared, and the model that they are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.leftover_folders import temporary_folder
from runtime.evaluation.evaluated_model import EvaluatedModel, HasDistributions
from runtime.evaluation.item import Item
from runtime.evaluation.local_model import KeptPlace
from runtime.evaluation.outcome import Outcome
from runtime.evaluation.outcome_cache import OutcomeCache, key_of

KEPT_NBYTES = 2 << 30
"""The most that distributions take on disk: some 7,000 tokens of a vocabulary of 150,000."""
DISK_SHARE = 2  # distributions take at most 1 / DISK_SHARE of the free disk
PREFIX = ".kept-"
"""The beginning of the temporary folder's name; the process's id follows."""
DIGITS = 6  # significant digits of a divergence in the cache


@dataclass
class DivergencePlan:
    """The models of one evaluation whose distributions are compared."""

    reference: HasDistributions
    """The model that is asked first: its distributions are kept."""
    others: Sequence[HasDistributions]
    cache: OutcomeCache
    kept: set[int] = field(default_factory=set)
    """The numbers of the items whose distributions are kept."""
    has_no_room: bool = False
    """Whether the distributions of some items were not kept."""

    def key(self, model: EvaluatedModel, item: Item) -> bytes:
        """The key of an item's divergences."""
        text = item.references[0]
        question = {"part": "divergences", "messages": list(item.messages), "texts": [text]}
        return key_of(model.identity, {**question, "from": self.reference.identity})

    def is_missing(self, model: EvaluatedModel, item: Item, number: int) -> bool:
        """Whether the model must give an item's divergences, or distributions for them."""
        if not item.references:
            return False
        if model is self.reference:
            return any(self.cache.get(self.key(one, item)) is None for one in self.others)
        return number in self.kept and self.cache.get(self.key(model, item)) is None

    def ask(self, model: EvaluatedModel, item: Item, number: int) -> Outcome:
        """The likelihoods of an item's right answer, with the divergences. Raises EngineError."""
        assert isinstance(model, HasDistributions), "only such models are in the plan"
        text = item.references[0]
        if model is self.reference:
            found = model.keep(item.messages, text, number)
            if isinstance(found, str):
                return Outcome(refusal=found)
            likelihoods, is_kept = found
            if is_kept:
                self.kept.add(number)
            else:
                self.has_no_room = True
            return Outcome(reference=likelihoods)
        compared = model.divergences(item.messages, text, number)
        if isinstance(compared, str):
            return Outcome(refusal=compared)
        likelihoods, divergences = compared
        rounded = tuple(float(f"{one:.{DIGITS}g}") for one in divergences)
        return Outcome(reference=likelihoods, divergences=rounded)


def divergence_plan(
    models: Sequence[EvaluatedModel], against: str, cache: OutcomeCache
) -> DivergencePlan | None:
    """The plan for the models that have distributions; None if there is nothing to compare."""
    able = [model for model in models if isinstance(model, HasDistributions)]
    reference = next((model for model in able if model.name == against), None)
    others = [model for model in able if model is not reference]
    return DivergencePlan(reference, others, cache) if reference and others else None


@contextmanager
def kept_place(folder: Path) -> Iterator[KeptPlace]:
    """A temporary folder for distributions, with its limit."""
    with temporary_folder(folder, PREFIX) as made:
        free = shutil.disk_usage(made).free
        yield KeptPlace(Path(made), min(KEPT_NBYTES, free // DISK_SHARE))
