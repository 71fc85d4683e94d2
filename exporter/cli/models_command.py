"""The commands `decant list` and `decant rm`."""

from __future__ import annotations

import time

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, store
from exporter.cli.terminal_renderer import print_json, print_table
from exporter.core.errors import ModelError
from exporter.core.paths import size_text
from exporter.model_store import (
    StoredModel,
    files_of,
    find_models,
    list_models,
    list_unfinished,
    remove_models,
    size_of,
    summary,
)


@click.command("list", epilog="Example: decant list --json")
@json_option
def list_(as_json: bool) -> None:
    """List the exported models."""
    rows = [summary(model) for model in list_models(store())]
    if as_json:
        print_json(rows)
        return
    for model in list_unfinished(store()):
        size = size_text(sum(map(size_of, files_of(model))))
        click.echo(
            f"unfinished: {model.full_name}, {size}: the same export resumes it,"
            f" `decant rm {model.full_name}` deletes it",
            err=True,
        )
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
    freed = remove_models(found)
    if as_json:
        print_json({"removed": [model.full_name for model in found], "nbytes": freed})
        return
    for model in found:
        click.echo(f"removed {model.full_name}")
    click.echo(f"freed {size_text(freed)}", err=True)
