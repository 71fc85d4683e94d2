"""The values of the options of `decant eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The values of the command line's options."""

    models: tuple[str, ...]
    data: str | None = None
    tasks: str | None = None
    """Tasks of lm-evaluation-harness, in place of data."""
    adapters: tuple[str, ...] = ()
    base: str | None = None
    against: str | None = None
    url: str | None = None
    remote_model: str | None = None
    key_file: Path | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    layout: str | None = None
    columns: tuple[str, ...] = ()
    system: str | None = None
    skip_bad: bool = False
    metrics: tuple[str, ...] = ()
    trust_code: bool = False
    by: tuple[str, ...] = ()
    max_tokens: int | None = None
    context: int | None = None
    threads: int | None = None
    parallel: int = 1
    force: bool = False
    judge: str | None = None
    judge_model: str | None = None
    judge_key_file: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    as_json: bool = False
    quiet: bool = False


def share_of(split: str | None) -> float | None:
    """The share of the rows that --split names; None for a split's name."""
    try:
        return float(split) if split is not None else None
    except ValueError:
        return None
