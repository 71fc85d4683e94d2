"""Items whose likelihoods are asked for in one request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from runtime.evaluation.evaluated_model import EvaluatedModel
from runtime.evaluation.item import Item, Message
from runtime.evaluation.metric import Needs
from runtime.evaluation.outcome import Likelihoods

ITEMS, CHARACTERS = 16, 8_000
"""The most items and characters of one request: more make the model's steps no fuller."""
GROUPED: frozenset[Needs] = frozenset(("reference", "rejected", "labels"))
"""The parts of outcomes that are asked for together."""
Continuations: TypeAlias = tuple[Sequence[Message], Sequence[str]]
"""A conversation, and the texts that may answer it."""


@runtime_checkable
class TakesGroups(EvaluatedModel, Protocol):
    """A model that computes the likelihoods of several items together."""

    def likelihoods_of(self, requests: Sequence[Continuations]) -> list[list[Likelihoods] | str]:
        """How likely each text is, or the refusal, for each conversation. Raises EngineError."""
        ...


def groups_of(items: Iterator[Item], wanted: Mapping[int, Sequence[Needs]]) -> Iterator[list[int]]:
    """The numbers of the items that are asked for together, in their order.

    items: all items of the data. Where a group begins depends on them alone, not on the
    wanted parts, so that an evaluation that is resumed has the same groups: a quantized model's
    likelihoods vary by some hundredths of a nat with the items computed beside them.
    """
    group: list[int] = []
    count = size = 0
    before = ""
    for number, item in enumerate(items):
        text = shown(item)
        new = len(text) - alike(before, text)
        before = text
        if count == ITEMS or (count and size + new > CHARACTERS):
            if group:
                yield group
            group, count, size, new = [], 0, 0, len(text)
        count, size = count + 1, size + new
        if wanted.get(number):
            group.append(number)
    if group:
        yield group


def shown(item: Item) -> str:
    """All texts of an item's conversation and its answers."""
    contents = [str(message.get("content", "")) for message in item.messages]
    return "\n".join((*contents, *item.references[:1], item.rejected))


def alike(one: str, other: str) -> int:
    """The number of equal characters at the beginning of two texts."""
    most = min(len(one), len(other), CHARACTERS)
    return next((place for place in range(most) if one[place] != other[place]), most)
