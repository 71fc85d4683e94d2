"""`decant export`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from exporter.cli.options import json_option, quiet_option, store
from exporter.cli.render import print_json, reporting
from exporter.core.errors import InputError, ToolchainError
from exporter.core.folders import model_name, size_text
from exporter.core.machine import cores
from exporter.core.types import parse_quant
from exporter.qlora import BaseRoundtrip
from exporter.steps import Combination
from exporter.store import file_name

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult
    from exporter.steps import MergeDtype


@click.command(epilog="Example: decant export ./my-lora --base ./Llama-3.2-1B -q Q4_K_M -q Q8_0")
@click.argument("adapter", required=False, type=click.Path(path_type=Path))
@click.option(
    "--adapter", "others", multiple=True, metavar="PATH[:SCALE]",
    help="Another adapter, merged after the first; give it again for more.",
)  # fmt: skip
@click.option(
    "--combine", type=click.Choice(get_args(Combination)),
    help="Make one LoRA of all adapters first, as peft's add_weighted_adapter does.",
)  # fmt: skip
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
    "--base-roundtrip", type=click.Choice(get_args(BaseRoundtrip)), default="auto",
    show_default=True,
    help="Merge onto the base as NF4 gave it in QLoRA training; auto goes by the adapter's folder.",
)  # fmt: skip
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Weaken or strengthen the adapter."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Quantizing threads; default: all cores."
)
@click.option(
    "--trust-remote-code", is_flag=True,
    help="Let the model's folder run Python code of its own. Read that code first.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@json_option
@quiet_option
def export(
    adapter: Path | None,
    others: tuple[str, ...],
    combine: Combination | None,
    base: Path | None,
    quants: tuple[str, ...],
    output: Path | None,
    merge_dtype: MergeDtype,
    base_roundtrip: BaseRoundtrip,
    scale: float,
    threads: int | None,
    trust_remote_code: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn the PEFT adapter in folder ADAPTER into a GGUF.

    The base is taken from --base, else from where the adapter says it was trained. Without
    ADAPTER (or with `-`) the base is converted as it is.
    """
    wanted = adapters_named(adapter, scale, others, combine)
    if not wanted and base is None:
        raise click.UsageError("name an adapter folder, or a base with --base")
    require_packages()
    from exporter.download.resolve import folder_of

    with reporting(quiet=quiet) as report:
        adapters = [(folder_of(path, report=report) or path, weight) for path, weight in wanted]
        base = folder_of(base, report=report)
    from exporter.adapter import open_adapter
    from exporter.pipeline import ExportRequest
    from exporter.pipeline import export as run
    from exporter.toolchain import find_toolchain

    chosen = tuple(dict.fromkeys(parse_quant(quant) for quant in quants))
    name = "-".join(open_adapter(path).name for path, _ in adapters) or model_name(base or Path())
    request = ExportRequest(
        adapters=tuple(adapters),
        base=base,
        quants=chosen,
        outputs=output_paths(output, name, chosen),
        merge_dtype=merge_dtype,
        combine=combine,
        base_roundtrip=base_roundtrip,
        trust_remote_code=trust_remote_code,
        force=force,
        threads=threads or cores(),
    )
    toolchain = find_toolchain()
    with reporting(quiet=quiet) as report:
        result = run(request, toolchain, dry_run=dry_run, report=report)
    show(result, dry_run=dry_run, as_json=as_json)


def adapters_named(
    first: Path | None, scale: float, others: tuple[str, ...], combine: Combination | None
) -> list[tuple[Path, float]]:
    """Every adapter that was named, with its scale, in order."""
    if not math.isfinite(scale):
        raise click.UsageError(f"--scale {scale} is not a number to multiply with")
    here = [(first, scale)] if first and first != Path("-") else []
    wanted = [*here, *(parse_weighted(text) for text in others)]
    if combine and len(wanted) < 2:  # noqa: PLR2004 - nothing to combine with
        raise click.UsageError("--combine needs a second adapter: --adapter PATH:SCALE")
    return wanted


def parse_weighted(text: str) -> tuple[Path, float]:
    """PATH or PATH:SCALE."""
    path, colon, scale = text.rpartition(":")
    try:
        weight = float(scale) if colon else 1.0
    except ValueError:
        path, weight = text, 1.0
    if not math.isfinite(weight):
        raise click.UsageError(f"--adapter {text}: {scale} is not a number to multiply with")
    return Path(path or text), weight


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
