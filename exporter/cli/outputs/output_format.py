"""A format of `decant export`, and the command line's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.core.machine import cores
from exporter.quantize.type_recipe import PLAIN, Recipe

if TYPE_CHECKING:
    from exporter.merge.operations import Combination, MergeDtype
    from exporter.merge.qlora import BaseRoundtrip


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The command line of `decant export`."""

    adapter: str | None
    revision: str | None
    subfolder: str | None
    others: tuple[str, ...]
    combine: Combination | None
    base: str | None
    quants: tuple[str, ...]
    recipe: Recipe
    output: Path | None
    merge_dtype: MergeDtype
    base_roundtrip: BaseRoundtrip
    scale: float
    threads: int | None
    trust_remote_code: bool
    no_verify: bool
    force: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    max_shard_size: str
    split_max_size: str | None
    served_name: str | None
    eval_data: str | None = None
    """Data to measure the result on."""
    push: str | None = None
    """The repo to publish the result in."""
    private: bool = False
    trusted: tuple[str, ...] = ()
    """Hosts that get the access token in a push."""
    adapters: tuple[tuple[str, float], ...] = ()
    """Every named adapter with its scale."""
    given: frozenset[str] = field(default_factory=frozenset)
    """The options that the user gave."""

    @property
    def has_first(self) -> bool:
        """Whether ADAPTER is named; `-` stands for none."""
        return self.adapter not in (None, "-")

    @property
    def thread_count(self) -> int:
        return self.threads or cores()


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """One value of --to."""

    name: str
    line: str
    """Its description in --help and in docs/export.md."""
    run: Callable[[ExportOptions], None]
    """Writes the result and prints it; raises the errors of an export."""
    without_meaning: Mapping[str, str] = field(default_factory=dict)
    """Parameters without a meaning for this format -> the reason."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Parameters of this format only -> the message for other formats."""
    needs_adapter: str = ""
    """Why a base alone is not enough; empty if it is."""
    takes_recipe: bool = False
    """Whether types and importance matrices apply to it."""
    is_pushed: bool = False
    """Whether it writes GGUFs, which --push publishes."""

    def check(self, options: ExportOptions) -> None:
        """Raise UsageError for options without a meaning for this format."""
        for parameter, reason in self.without_meaning.items():
            if parameter in options.given:
                raise click.UsageError(reason)
        if options.push is None and options.given & {"private", "trusted"}:
            raise click.UsageError("--private and --trust-token are options of --push ORG/NAME")
        if options.push is not None and not self.is_pushed:
            raise click.UsageError(
                f"--push publishes GGUFs (--to gguf, lora or ollama), not --to {self.name}:"
                f" `hf upload {options.push or 'ORG/NAME'} FOLDER` publishes any folder"
            )
        if self.needs_adapter and not options.has_first:
            raise click.UsageError(self.needs_adapter)
        if not self.takes_recipe and options.recipe != PLAIN:
            raise click.UsageError(
                f"types and importance matrices are for GGUF models, not --to {self.name}"
            )
