"""Completions of arguments and options for the shell's Tab key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from exporter.cli.common_options import store
from exporter.core.ggml_types import QUANTS
from exporter.model_store import list_models

if TYPE_CHECKING:
    import click


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, and the stored models; in this order, as bash's script drops what precedes files."""
    del ctx, parameter
    return [CompletionItem(incomplete, type="file"), *beginning(model_names(), incomplete)]


def stored(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The stored models alone."""
    del ctx, parameter
    return beginning(model_names(), incomplete)


def importable(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The models of the program that --from names."""
    from exporter.stores.all_stores import models_of_program

    del parameter
    program = ctx.params.get("program")
    found = models_of_program(program, os.environ) if program else []
    return beginning([model.name for model in found if not model.problem], incomplete)


def quants(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The quantizations, in either case."""
    del ctx, parameter
    return beginning(QUANTS, incomplete.upper())


def paths(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders."""
    del ctx, parameter
    return [CompletionItem(incomplete, type="file")]


def model_names() -> list[str]:
    """The names of the stored models; none if the store cannot be read."""
    try:
        return [model.full_name for model in list_models(store())]
    except OSError:
        return []


def beginning(names: Sequence[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
