"""The options of `decant chat`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command line's options."""

    model: str | None
    prompt: str | None
    system: str | None
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    context: int | None
    threads: int | None
    adapters: tuple[str, ...]
    base: str | None
    projector: Path | None
    chat_template: str | None
    raw: bool
    url: str | None
    key_file: Path | None
    remote_model: str | None
    markdown: bool
    stats: bool
    save: bool
    go_on: bool
    resume: str | None
    list_: bool
    force: bool
    verbose: bool
    as_json: bool
    quiet: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling settings that were given; the engine's defaults apply to the others."""
        found = {
            "temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}
