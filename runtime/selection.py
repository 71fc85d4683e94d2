"""Who answers: the model as it is, or with an adapter."""

from __future__ import annotations

from dataclasses import dataclass

MERGED = ""
"""The adapter of a turn that was answered by the model as it is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers: an adapter, by its name, and how much of it."""

    adapter: str = MERGED
    scale: float = 1.0

    def __str__(self) -> str:
        """As it is typed, `NAME` or `NAME:SCALE`."""
        if not self.adapter:
            return "base"
        return self.adapter if self.scale == 1 else f"{self.adapter}:{self.scale:g}"
