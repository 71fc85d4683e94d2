"""An item of the data: what a model is asked, and what it should answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""OpenAI's: a role, and a text or parts."""
Task = Literal["answers", "labels", "json", "preferences", "texts"]
"""The kinds of data. Answers are free text, short or long; labels are few texts that recur; texts
have no question: only their likelihood is measured."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the data."""

    id: str
    """The row's own `id` where it has one, else its place, from 1; unique in the data."""
    line: int
    """The line of the file, or the number of the row where the file has no lines; from 1."""
    messages: tuple[Message, ...] = ()
    """The conversation up to the answer; empty for a text without a question."""
    references: tuple[str, ...] = ()
    """The right answers, the main one first; for a preference, the chosen answer."""
    rejected: str = ""
    """The answer that was rejected; only preferences have one."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The other columns of the row, by which results can be grouped."""

    @property
    def question(self) -> str:
        """The last message's text, to show."""
        content = self.messages[-1].get("content") if self.messages else ""
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else []
        return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
