"""`decant export --to gguf`, the default: the merged model, quantized."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import brought, merge_request
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.errors import InputError
from exporter.core.paths import size_text

if TYPE_CHECKING:
    from exporter.export import ExportResult

LONGEST_NAME = 220  # bytes of 255: .NAME-00001-of-00002.gguf.partial is written first
FEW_CHARACTERS = 40
OTHER_FILES = (".bin", ".safetensors", ".pt", ".pth", ".ggml", ".zip", ".onnx")


def export_gguf(options: ExportOptions) -> None:
    """Write the GGUF files and show them."""
    from exporter.calibrate import with_matrix
    from exporter.export import export as run
    from exporter.llamacpp.toolchain import find_toolchain

    if options.output:
        refuse_name(options.output)
    if (found := brought(options)) is None:
        return
    _, request = merge_request(options, *found)
    toolchain = find_toolchain()
    with reporting(quiet=options.quiet) as report:
        request = with_matrix(request, toolchain, dry_run=options.dry_run, report=report)
        result = run(request, toolchain, dry_run=options.dry_run, report=report)
    show(result, dry_run=options.dry_run, as_json=options.as_json)


def refuse_name(output: Path) -> None:
    """Raise InputError for a name that cannot be a GGUF's or a folder's."""
    is_gguf = output.suffix.lower() == ".gguf"
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise InputError(
            f"`{output.name[:FEW_CHARACTERS]}…` is a longer name than {LONGEST_NAME} bytes, which"
            " is all that file systems take beside what a writing needs",
            hint="-o with a shorter name",
        )
    if output.suffix in OTHER_FILES and not output.is_dir():
        raise InputError(
            f"`{output}` has the name of a file that is no GGUF",
            hint=f"-o {output.with_suffix('.gguf')}, or a folder; --to safetensors writes the"
            " merged model for transformers",
        )
    if output.exists() and not output.is_dir() and not is_gguf:
        raise InputError(f"`{output}` is a file, and no GGUF", hint="-o FILE.gguf, or a folder")


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


GGUF = OutputFormat("gguf", "the merged model", export_gguf, takes_recipe=True)
