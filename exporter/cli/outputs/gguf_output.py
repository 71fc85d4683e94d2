"""`decant export --to gguf`, the default: the merged model, quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.outputs.brought_inputs import Ahead, brought
from exporter.cli.outputs.calibration import calibrated
from exporter.cli.outputs.evaluated_output import evaluation_after
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.pushed_output import push_after, then_json
from exporter.cli.outputs.request_options import (
    chosen_quants,
    merge_request,
    output_paths,
    refuse_recipe,
    refuse_taken_files,
)
from exporter.cli.sizes import parse_size
from exporter.cli.terminal_renderer import print_table, reporting
from exporter.core.events import silent
from exporter.core.paths import size_text

if TYPE_CHECKING:
    from exporter.export import ExportResult
    from exporter.forecast.forecast import Forecast

LAYER = re.compile(r"(?:\w+\.)?blk\.(?P<number>\d+)\.(?P<role>.*)")


def export_gguf(options: ExportOptions) -> None:
    """Write the GGUF files and print them, and what --eval and --push give. Raises their errors."""
    from exporter.export import export as run
    from exporter.llamacpp.toolchain import find_toolchain

    evaluation, ahead = evaluation_after(options), gguf_ahead(options)
    pushing = push_after(options)
    if (found := brought(options, ahead)) is None:
        return
    names, request = merge_request(options, *found)

    def outputs(name: str) -> tuple[Path, ...]:
        return output_paths(options.output, name, request.quants)

    name = names.chosen(outputs, quiet=options.quiet)
    request = replace(request, outputs=outputs(name), name=name)
    toolchain = find_toolchain()
    with reporting(quiet=options.quiet) as report:
        request = calibrated(request, toolchain, dry_run=options.dry_run, report=report)
        result = run(request, toolchain, dry_run=options.dry_run, report=report)
    value = asdict(result) | {"dry_run": options.dry_run}
    if not options.as_json:
        show(result, dry_run=options.dry_run)
    with then_json(value, as_json=options.as_json):
        if evaluation is not None and not options.dry_run:
            value["evaluation"] = evaluation.of(request, result, toolchain)
        if pushing is not None:
            value["pushed"] = pushing.of([file.path for file in result.files])


def gguf_ahead(options: ExportOptions) -> Ahead:
    """The refusals before the inputs are pulled. Raises for options that cannot be used."""
    quants = chosen_quants(options.quants)
    refuse_recipe(options.recipe, quants)
    if options.split_max_size:
        parse_size("--split-max-size", options.split_max_size)
    output_paths(options.output, "model", quants)  # raises for a name that no GGUF can have
    return Ahead(
        "gguf",
        lambda name: refuse_taken_files(options, quants, name, report=silent),
        sizes=quants,
        folder=options.output,
    )


def show(result: ExportResult, *, dry_run: bool) -> None:
    for file in result.files:
        if dry_run and file.chosen:
            show_choice(file.chosen)
        types = ", ".join(f"{count} {name}" for name, count in file.types.items())
        click.echo(f"{file.path}")
        parts = f" in {len(file.shards)} files" if file.shards else ""
        click.echo(f"  {file.quant}, {size_text(file.nbytes)}{parts}: {types}", err=True)
    done = "would change" if dry_run else f"{result.seconds:.1f} s; merged"
    click.echo(f"{done} {result.merged} of {result.tensors} tensors", err=True)
    if result.forecast is not None:
        click.echo(forecast_text(result.forecast), err=True)


def forecast_text(found: Forecast) -> str:
    """The forecast of an export as a sentence."""
    about = "at least" if found.is_lower_bound else "about"
    text = f"would take {about} {duration_text(found.seconds)}"
    text += f", {size_text(found.memory_nbytes)} of memory, {size_text(found.disk_nbytes)} of disk"
    if found.loading_nbytes:
        text += f"; the verification loads the file, {size_text(found.loading_nbytes)} more"
    return text


def duration_text(seconds: float) -> str:
    """A duration for people: 12 s, 4 min, 2.5 h."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"  # noqa: PLR2004
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004


def show_choice(chosen: Mapping[str, str]) -> None:
    """Print the types of each kind of tensor, with the numbers of the layers that have them."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, kind in chosen.items():
        layer = LAYER.match(name)
        role, number = (layer["role"], layer["number"]) if layer else (name, "")
        found.setdefault(role, {}).setdefault(kind, []).append(number)
    print_table(
        ("TENSORS", "TYPE", "LAYERS"),
        [
            (role, kind, " ".join(numbers))
            for role, kinds in sorted(found.items())
            for kind, numbers in sorted(kinds.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        ],
    )


GGUF = OutputFormat(
    "gguf",
    "the merged model",
    export_gguf,
    own={"eval_data": "--eval is for --to gguf, the models that decant runs"},
    takes_recipe=True,
    is_pushed=True,
)
