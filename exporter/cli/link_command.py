"""The command `decant link`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, quiet_option, store
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.events import Note
from exporter.model_store import find_local

if TYPE_CHECKING:
    from exporter.share.linked_model import Linked


@click.command(epilog="Example: decant link my-lora --to ollama --as my-lora")
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--to", "target", required=True, type=click.Choice(("ollama", "lmstudio")),
    help="The program that gets it.",
)  # fmt: skip
@click.option(
    "--as", "name", metavar="NAME",
    help="Its name there; default: NAME:QUANT for Ollama, decant/NAME for LM Studio.",
)  # fmt: skip
@click.option(
    "--copy", is_flag=True,
    help="Send it over the API of a running Ollama, which stores a copy; for a store that you may"
    " not write to.",
)  # fmt: skip
@json_option
@quiet_option
def link(
    model: str,
    target: Literal["ollama", "lmstudio"],
    name: str | None,
    copy: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Give MODEL to another program, without a copy.

    MODEL is a name from `decant list`, or FILE.gguf. The file gets a second name (a hard link), on
    another disk a symbolic link. Ollama gets the model's template, stops and parameters, too, and
    may run meanwhile. Nothing that the program has is changed.
    """
    from exporter.share.linked_model import link_model

    if copy and target != "ollama":
        raise click.UsageError("--copy is for --to ollama: LM Studio takes links")
    with reporting(quiet=quiet) as report:
        path = find_local(model, store(), report=report)
        made = link_model(path, target, name, copy=copy, report=report)
        if target == "ollama":
            report(Note(f"then: ollama run {shlex.quote(made.name)}"))
    show(made, target, as_json=as_json)


def show(made: Linked, target: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"program": target, "name": made.name, "place": made.place, "link": made.kind})
    else:
        click.echo(made.name)
