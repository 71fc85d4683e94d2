"""The selection of what answers: the model itself, or one of its adapters."""

from __future__ import annotations

from dataclasses import dataclass

MERGED = ""
"""The adapter of a turn that the model itself answered."""


@dataclass(frozen=True, slots=True)
class AdapterSelection:
    """The adapter that answers, by its name, and its scale."""

    adapter: str = MERGED
    scale: float = 1.0

    def __str__(self) -> str:
        """The form that users type: `NAME` or `NAME:SCALE`."""
        if not self.adapter:
            return "base"
        return self.adapter if self.scale == 1 else f"{self.adapter}:{self.scale:g}"
