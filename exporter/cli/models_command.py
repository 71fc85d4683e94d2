"""The commands `decant list` and `decant rm`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, store
from exporter.cli.terminal_renderer import print_json, print_table
from exporter.core.errors import ModelError
from exporter.core.paths import size_text
from exporter.core.terminal_text import without_controls
from exporter.model_store import (
    StoredModel,
    files_of,
    find_models,
    gone,
    list_gone,
    list_models,
    list_unfinished,
    own_bytes,
    remove_models,
    size_of,
    summary,
)


@click.command("list", epilog="Example: decant list --json")
@click.option(
    "--all", "every", is_flag=True,
    help="Show what Ollama, LM Studio and the hub's cache have, too.",
)  # fmt: skip
@json_option
def list_(every: bool, as_json: bool) -> None:
    """List the exported models."""
    rows = [summary(model) for model in list_models(store())]
    others = rows_of_others() if every else []
    if as_json:
        print_json([*({"store": "decant"} | row for row in rows), *others] if every else rows)
        return
    show_own(rows)
    if others:
        if rows:
            click.echo()
        show_others(others)
    elif every:
        click.echo("Ollama, LM Studio and the hub's cache have no models here", err=True)


def rows_of_others() -> list[dict[str, object]]:
    """The models of other programs, as JSON values."""
    from exporter.stores.all_stores import other_models
    from exporter.stores.all_stores import rows as rows_of

    return rows_of(other_models(os.environ), store())


def show_others(rows: list[dict[str, object]]) -> None:
    """Print the models of other programs, with what to type for each."""
    columns = ("STORE", "NAME", "SIZE", "TO HAVE IT HERE")
    shown = [
        (
            str(row["store"]),
            without_controls(str(row["name"])),
            size_text(float(str(row["nbytes"]))) if row["nbytes"] else "?",
            without_controls(str(row["to_import"])),
        )
        for row in rows
    ]
    print_table(columns, shown)


def show_own(rows: list[dict[str, object]]) -> None:
    """Print the models of decant's store; on stderr, what is unfinished or gone."""
    for model in list_unfinished(store()):
        size = size_text(sum(map(size_of, files_of(model))))
        click.echo(
            f"unfinished: {model.full_name}, {size}: the same export resumes it,"
            f" `decant rm {model.full_name}` deletes it",
            err=True,
        )
    for model in list_gone(store()):
        error = gone(model)
        click.echo(f"{error.message}: {error.hint}", err=True)
    if not rows:
        click.echo(f"no models in `{store()}` yet; `decant export ADAPTER` makes one", err=True)
        return
    print_table(
        ("NAME", "SIZE", "PARAMETERS", "ARCHITECTURE", "MODIFIED"),
        [
            (
                str(row["name"]),
                size_text(float(str(row["nbytes"]))),
                millions(row.get("parameters")),
                architecture(row),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(float(str(row["modified"])))),
            )
            for row in rows
        ],
    )


def architecture(row: dict[str, object]) -> str:
    name = str(row.get("architecture") or "damaged")
    return f"{name} adapter" if row.get("kind") == "adapter" else name


def millions(parameters: object) -> str:
    return f"{parameters / 1e6:.4g} M" if isinstance(parameters, int) else "?"


@click.command("rm", epilog="Example: decant rm my-lora-Q4_K_M")
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=completing.stored
)
@click.option("--all", "every", is_flag=True, help="Delete every quantization of NAME.")
@json_option
def rm(names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Delete exported models from the store. Files elsewhere are never touched."""
    found: list[StoredModel] = []
    for name in names:
        models = find_models(name, store(), unfinished=True)
        if len(models) > 1 and not every:
            raise ModelError(
                f"{name!r} is stored in {len(models)} quantizations",
                hint=f"name one ({', '.join(model.full_name for model in models)}) or pass --all",
            )
        found.extend(model for model in models if model not in found)
    is_kept = any(own_bytes(path) < size_of(path) for path in existing_files(found))
    freed = remove_models(found)
    if as_json:
        print_json({"removed": [model.full_name for model in found], "nbytes": freed})
        return
    for model in found:
        click.echo(f"removed {model.full_name}")
    kept = "; the rest is another program's, too, which keeps it" if is_kept else ""
    click.echo(f"freed {size_text(freed)}{kept}", err=True)


def existing_files(models: list[StoredModel]) -> list[Path]:
    return [path for model in models for path in files_of(model) if path.exists()]
