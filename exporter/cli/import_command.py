"""The command `decant import`."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, get_args

import click

from exporter.cli import completing
from exporter.cli.common_options import json_option, quiet_option, store
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.events import Note
from exporter.stores.other_model import Program

if TYPE_CHECKING:
    from exporter.stores.imported_model import Imported


@click.command("import", epilog="Example: decant import --from ollama llama3.2:1b")
@click.option(
    "--from", "program", required=True, type=click.Choice(get_args(Program)),
    help="The program that has it; hf: the cache of huggingface_hub.",
)  # fmt: skip
@click.argument("name", shell_complete=completing.importable)
@click.option("--as", "chosen", metavar="NAME", help="Its name in decant's store.")
@json_option
@quiet_option
def import_(program: Program, name: str, chosen: str | None, as_json: bool, quiet: bool) -> None:
    """Take a model that another program has into decant's store, without a copy.

    NAME is as `decant list --all` shows it: MODEL:TAG of Ollama's, PUBLISHER/MODEL/FILE of LM
    Studio's, ORG/NAME:QUANT or ORG/NAME/FILE of the cache. The file gets a second name (a hard
    link), on another disk a symbolic link. Its header is checked, and its hash where the program
    states one. Nothing of the other program's is changed.
    """
    from exporter.stores.all_stores import find_other
    from exporter.stores.imported_model import import_model
    from exporter.stores.ollama_settings import say_settings

    with reporting(quiet=quiet) as report:
        model, manifest = find_other(program, name, os.environ)
        made = import_model(model, store(), chosen, report=report)
        if manifest is not None:
            say_settings(manifest, made.header, made.name, report=report)
        report(Note(f"then: decant chat {shlex.quote(made.name)}"))
    if as_json:
        print_json(value_of(made, program, model.name))
    else:
        click.echo(made.path)


def value_of(made: Imported, program: Program, name: str) -> dict[str, object]:
    return {
        "name": made.name,
        "path": str(made.path),
        "nbytes": made.nbytes,
        "link": made.kind,
        "from": program,
        "source": name,
        "adapters": list(map(str, made.adapters)),
        "projectors": list(map(str, made.projectors)),
    }
