"""`decant export --to ollama`: the GGUF with its Modelfile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from exporter.cli.outputs.brought_inputs import Ahead, brought
from exporter.cli.outputs.calibration import calibrated
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.pushed_output import push_after, then_json
from exporter.cli.outputs.request_options import (
    chosen_quants,
    folder_by,
    merge_request,
    output_folder,
    refuse_file,
    refuse_recipe,
    show_folder,
)
from exporter.cli.terminal_renderer import reporting
from exporter.core.atomic_folder import refuse_taken


def export_ollama(options: ExportOptions) -> None:
    """Write the folder and print it. Raises UsageError for several quantizations."""
    from exporter.gguf_inputs.gguf_base import refuse_gguf_base
    from exporter.llamacpp.toolchain import find_toolchain
    from exporter.ollama_folder import MARKS, export_for_ollama

    refuse_file(options.output, "ollama")
    quants = chosen_quants(options.quants)
    if len(quants) > 1:
        raise click.UsageError("a Modelfile names one GGUF: give -q once with --to ollama")
    refuse_recipe(options.recipe, quants)

    def refuse_output(name: str) -> None:
        refuse_taken(output_folder(options, "ollama", name), MARKS, force=options.force)

    folder = options.output or Path()
    ahead = Ahead("ollama", refuse_output, sizes=quants, folder=folder, needs_checkpoint=True)
    pushing = push_after(options)
    if (found := brought(options, ahead)) is None:
        return
    names, request = merge_request(options, *found)
    refuse_gguf_base(request.base, "ollama")
    folder = folder_by(names, options, "ollama")
    toolchain, dry_run = find_toolchain(), options.dry_run
    with reporting(quiet=options.quiet) as report:
        request = calibrated(request, toolchain, dry_run=dry_run, report=report)
        made = export_for_ollama(request, folder, toolchain, dry_run=dry_run, report=report)
    value = asdict(made) | {"dry_run": dry_run}
    if not options.as_json:
        show_folder(made, dry_run=dry_run, as_json=False)
    with then_json(value, as_json=options.as_json):
        if pushing is not None:
            value["pushed"] = pushing.of([made.path])


OLLAMA = OutputFormat(
    "ollama",
    "the GGUF with its Modelfile",
    export_ollama,
    without_meaning={"split_max_size": "Ollama imports no split GGUF: leave out --split-max-size"},
    takes_recipe=True,
    is_pushed=True,
)
