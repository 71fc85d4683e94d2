"""The task that data is for, by its layout and its references."""

from __future__ import annotations

import json
from collections.abc import Sequence

from runtime.evaluation.item import Task

LABELS = 20  # most distinct references that count as labels without a column of labels
LABEL_WORDS = 5  # words of the longest such label
RECURS = 3  # rows for each such label, on average
MOST = 1000  # distinct references kept; a column with more labels holds free text
LONGEST = 200  # characters of the longest label
JSON_SHARE = 0.95  # of references that are JSON objects or lists


class ReferenceCount:
    """Counts references, and keeps the distinct ones until they are too many or too long."""

    def __init__(self) -> None:
        self.rows = 0
        self.json = 0
        self._distinct: set[str] | None = set()

    def add(self, references: Sequence[str]) -> None:
        """Count a row's references."""
        text = references[0]
        self.rows += 1
        self.json += is_json(text)
        if self._distinct is not None:
            self._distinct.add(text)
            if len(references) > 1 or len(text) > LONGEST or len(self._distinct) > MOST:
                self._distinct = None

    @property
    def distinct(self) -> tuple[str, ...]:
        """The references in alphabetical order; none where they cannot be labels."""
        return tuple(sorted(self._distinct or ()))

    @property
    def are_labels(self) -> bool:
        """Whether the references are few, short, and recur."""
        found = self.distinct
        return (
            1 < len(found) <= LABELS
            and self.rows >= RECURS * len(found)
            and all(len(text.split()) <= LABEL_WORDS for text in found)
        )


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    if not text.startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def task_of(layout: str, count: ReferenceCount) -> Task:
    """The task of rows of a layout with these references."""
    if layout == "preferences":
        return "preferences"
    if layout == "text":
        return "texts"
    if (layout == "text-label" and count.distinct) or count.are_labels:
        return "labels"
    return "json" if count.rows and count.json >= JSON_SHARE * count.rows else "answers"
