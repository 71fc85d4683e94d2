"""Keeps the names of special tokens that stand in the data from acting as special tokens.

A control token's name in a message is replaced by a mark before the template is rendered; in the
rendered prompt the mark becomes a part that is tokenized as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.evaluation.item import Message
from runtime.scoring.likelihood_request import PLAIN

OPEN, CLOSE = "\ue0f0", "\ue0f1"
"""Characters for private use, around a special token's number."""
MARK = re.compile(f"{OPEN}(\\d+){CLOSE}")

Part = str | dict[str, str]
"""A prompt's part: text with special tokens, or {"plain": text} without."""


class PlainData:
    """Marks the control tokens of one vocabulary."""

    def __init__(self, controls: Sequence[str]) -> None:
        self.controls = tuple(controls)
        self.pattern = re.compile("|".join(map(re.escape, controls))) if controls else None

    def is_named_in(self, messages: Sequence[Message]) -> bool:
        """Whether a message names a control token."""
        pattern = self.pattern
        return pattern is not None and any(pattern.search(one) for one in texts(messages))

    def marked(self, value: Any) -> Any:
        """A text, part or message with marks in place of control tokens."""
        if isinstance(value, str):
            assert self.pattern is not None
            return self.pattern.sub(
                lambda found: f"{OPEN}{self.controls.index(found[0])}{CLOSE}", value
            )
        if isinstance(value, list | tuple):
            return [self.marked(one) for one in value]
        if isinstance(value, Mapping):
            return {
                name: one if name in ("role", "type") else self.marked(one)
                for name, one in value.items()
            }
        return value

    def parts(self, prompt: str) -> list[Part]:
        """The parts of a rendered prompt."""
        found: list[Part] = []
        for place, text in enumerate(MARK.split(prompt)):
            if place % 2:
                found.append({PLAIN: self.controls[int(text)]})
            elif text:
                found.append(text)
        return found


def texts(value: Any) -> list[str]:
    """All texts in a message, or in a list of messages."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in texts(one)]
    return []
