"""Reference answers as texts, in the forms in which data holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from runtime.evaluation.data.file_rows import RowError

SQUAD = {"text", "answer_start"}
TRIVIA = {"value", "aliases"}
"""TriviaQA's: one answer, and others that mean the same."""


def reference_texts(value: object, column: str) -> tuple[str, ...]:
    """The answers of a column, each once, the empty ones left out. Raises RowError for none."""
    found = tuple(dict.fromkeys(text for one in several(value) if (text := as_text(one))))
    if found:
        return found
    if isinstance(value, float) and math.isnan(value):
        raise RowError(f"its `{column}` is NaN")
    if value is None:
        raise RowError(f"its `{column}` is null")
    raise RowError(f"its `{column}` is empty")


def several(value: object) -> list[object]:
    """The single answers in a value."""
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), list) and set(value) <= SQUAD:
            return list(value["text"])
        if set(value) >= TRIVIA and isinstance(value["aliases"], list):
            return [value["value"], *value["aliases"]]
        return [value]
    return parts_of_list(value) if isinstance(value, list) else [value]


def parts_of_list(value: list[Any]) -> list[object]:
    """The answers in a list: its elements, SQuAD's spans, or the list itself as JSON."""
    if all(isinstance(one, Mapping) and "text" in one and set(one) <= SQUAD for one in value):
        return [one["text"] for one in value]
    if any(isinstance(one, Mapping | list) for one in value):
        return [value]
    return list(value)


def as_text(value: object) -> str:
    """A value as an answer's text; empty for null and NaN."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | int | float | Mapping | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def required_text(value: object, column: str) -> str:
    """A question's text. Raises RowError for an empty one, and for lists and objects."""
    if isinstance(value, Mapping | list):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise RowError(f"its `{column}` is {kind}, not a text")
    text = as_text(value)
    if not text:
        raise RowError(f"its `{column}` is {'null' if value is None else 'empty'}")
    return value if isinstance(value, str) else text


def optional_text(value: object) -> str:
    """A text that may be absent; lists of texts are joined, and other values become JSON."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return as_text(value)


def refuse_unsendable(value: object) -> None:
    """Raise RowError for a text that no tokenizer takes, anywhere in a value."""
    if isinstance(value, str):
        if "\0" in value:
            raise RowError("it holds the character NUL")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(
                f"it holds half of a character ({value[error.start]!a}): a surrogate without the"
                " other"
            ) from error
    elif isinstance(value, Mapping):
        for one in value.values():
            refuse_unsendable(one)
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_unsendable(one)
