"""`decant export`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import json_option, quiet_option, store
from exporter.cli.render import print_json, reporting
from exporter.core.errors import InputError, ToolchainError
from exporter.core.folders import model_name, size_text
from exporter.core.machine import cores
from exporter.core.types import parse_quant
from exporter.store import file_name

if TYPE_CHECKING:
    from exporter.merge import MergeDtype
    from exporter.pipeline import ExportResult


@click.command(epilog="Example: decant export ./my-lora --base ./Llama-3.2-1B -q Q4_K_M -q Q8_0")
@click.argument("adapter", required=False, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Folder of the base model.")
@click.option(
    "-q", "--quant", "quants", multiple=True, default=("Q4_K_M",), show_default=True,
    help="Quantization; give it again for several files from one pass.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="FILE.gguf, or a folder. Without it: the store, for `decant chat NAME`.",
)  # fmt: skip
@click.option(
    "--merge-dtype", type=click.Choice(("float32", "base")), default="float32", show_default=True,
    help="float32 adds exactly; base rounds as peft, convert and llama-quantize do.",
)  # fmt: skip
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Weaken or strengthen the adapter."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Quantizing threads; default: all cores."
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@json_option
@quiet_option
def export(
    adapter: Path | None,
    base: Path | None,
    quants: tuple[str, ...],
    output: Path | None,
    merge_dtype: MergeDtype,
    scale: float,
    threads: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn the PEFT adapter in folder ADAPTER into a GGUF.

    The base is taken from --base, else from where the adapter says it was trained. Without
    ADAPTER (or with `-`) the base is converted as it is.
    """
    if adapter == Path("-"):
        adapter = None
    if adapter is None and base is None:
        raise click.UsageError("name an adapter folder, or a base with --base")
    if not math.isfinite(scale):
        raise click.UsageError(f"--scale {scale} is not a number to multiply with")
    require_packages()
    from exporter.download.resolve import folder_of

    with reporting(quiet=quiet) as report:
        adapter, base = folder_of(adapter, report=report), folder_of(base, report=report)
    from exporter.adapter import open_adapter
    from exporter.pipeline import ExportRequest
    from exporter.pipeline import export as run
    from exporter.toolchain import find_toolchain

    chosen = tuple(dict.fromkeys(parse_quant(quant) for quant in quants))
    name = open_adapter(adapter).name if adapter else model_name(base or Path())
    request = ExportRequest(
        adapter=adapter,
        base=base,
        quants=chosen,
        outputs=output_paths(output, name, chosen),
        merge_dtype=merge_dtype,
        scale=scale,
        force=force,
        threads=threads or cores(),
    )
    toolchain = find_toolchain()
    with reporting(quiet=quiet) as report:
        result = run(request, toolchain, dry_run=dry_run, report=report)
    show(result, dry_run=dry_run, as_json=as_json)


def require_packages() -> None:
    """ToolchainError, saying how to install them, when torch and its kin are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise ToolchainError(
            f"exporting needs {', '.join(missing)}, which this installation lacks",
            hint="pip install 'decant-llm[export]'",
        )


def output_paths(output: Path | None, name: str, quants: tuple[str, ...]) -> tuple[Path, ...]:
    """Where each quantization goes: the one file that was named, a folder, or the store."""
    if output is None or output.suffix != ".gguf" or output.is_dir():
        folder = output or store()
        return tuple(folder / file_name(name, quant) for quant in quants)
    if len(quants) > 1:
        raise InputError(
            f"{len(quants)} quantizations cannot all be written to `{output}`",
            hint=f"name a folder: -o {output.with_suffix('')}",
        )
    return (output,)


def show(result: ExportResult, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result) | {"dry_run": dry_run})
        return
    for file in result.files:
        types = ", ".join(f"{count} {name}" for name, count in file.types.items())
        click.echo(f"{file.path}")
        click.echo(f"  {file.quant}, {size_text(file.nbytes)}: {types}", err=True)
    done = "would change" if dry_run else f"{result.seconds:.1f} s; merged"
    click.echo(f"{done} {result.merged} of {result.tensors} tensors", err=True)
