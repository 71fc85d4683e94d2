"""`decant export --to gguf`, the default: the merged model, quantized."""

from __future__ import annotations

import importlib
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from exporter.cli.outputs.evaluated_output import evaluation_after
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import brought, chosen_quants, merge_request
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.errors import InputError, ToolchainError
from exporter.core.events import Note, Report, Warn
from exporter.core.ggml_types import AUTO
from exporter.core.paths import size_text

if TYPE_CHECKING:
    from exporter.export import ExportResult
    from exporter.formats.export_request import ExportRequest
    from exporter.llamacpp.toolchain import Toolchain

TRAINING = "runtime.cli.training_text"
"""The module that reads training data; the exporter names runtime in strings."""
TEXT = Path(__file__).parents[2] / "quantize" / "calibration.txt"
"""Some thousand tokens in many languages, with code, to calibrate on where nothing better is."""


def export_gguf(options: ExportOptions) -> None:
    """Write the GGUF files and print them, and what --eval finds. Raises its errors, too."""
    from exporter.export import export as run
    from exporter.llamacpp.toolchain import find_toolchain

    evaluation = evaluation_after(options)
    if (found := brought(options, chosen_quants(options.quants))) is None:
        return
    _, request = merge_request(options, *found)
    toolchain = find_toolchain()
    with reporting(quiet=options.quiet) as report:
        request = calibrated(request, toolchain, dry_run=options.dry_run, report=report)
        result = run(request, toolchain, dry_run=options.dry_run, report=report)
    is_measured = evaluation is not None and not options.dry_run
    if not (is_measured and options.as_json):
        show(result, dry_run=options.dry_run, as_json=options.as_json)
    if evaluation is None or not is_measured:
        return
    try:
        measured = evaluation.of(request, result, toolchain)
    except BaseException:  # Ctrl-C, too: the files are made, and a program wants to know
        if options.as_json:
            show(result, dry_run=False, as_json=True)
        raise
    if options.as_json:
        print_json(asdict(result) | {"dry_run": False, "evaluation": measured})


def calibrated(
    request: ExportRequest, toolchain: Toolchain, *, dry_run: bool, report: Report
) -> ExportRequest:
    """The request with its importance matrix. AUTO has one from the training data, or from TEXT.

    Without a matrix where llama.cpp cannot measure one for such a model.
    """
    from exporter.calibrate import with_matrix

    recipe = request.recipe
    if AUTO not in request.quants or recipe.imatrix or recipe.calibrate or not recipe.calibrates:
        return with_matrix(request, toolchain, dry_run=dry_run, report=report)
    adapters = [folder for folder, _ in request.adapters]
    found = importlib.import_module(TRAINING).training_text(adapters)
    with TemporaryDirectory(prefix="decant-") as folder:
        text = TEXT
        if found:
            text = Path(folder) / f"{found[0]}.txt"
            text.write_text(found[1], encoding="utf-8")
        named = f"the adapter's training data, `{found[0]}`" if found else "decant's small text"
        report(Note(f"calibrating on {named}; --calibrate TEXT names another, --no-calibrate none"))
        with_text = replace(request, recipe=replace(recipe, calibrate=text))
        try:
            return with_matrix(with_text, toolchain, dry_run=dry_run, report=report)
        except (InputError, ToolchainError) as error:
            reason = error.message.partition("\n")[0]
            report(Warn(f"the types are chosen without an importance matrix: {reason}"))
            return request


def show(result: ExportResult, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result) | {"dry_run": dry_run})
        return
    for file in result.files:
        types = ", ".join(f"{count} {name}" for name, count in file.types.items())
        click.echo(f"{file.path}")
        parts = f" in {len(file.shards)} files" if file.shards else ""
        click.echo(f"  {file.quant}, {size_text(file.nbytes)}{parts}: {types}", err=True)
    done = "would change" if dry_run else f"{result.seconds:.1f} s; merged"
    click.echo(f"{done} {result.merged} of {result.tensors} tensors", err=True)


GGUF = OutputFormat(
    "gguf",
    "the merged model",
    export_gguf,
    own={"eval_data": "--eval is for --to gguf, the models that decant runs"},
    takes_recipe=True,
)
