"""`decant export --to lora`: a GGUF adapter, for llama-server's --lora."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.common_options import store
from exporter.cli.outputs.brought_inputs import Ahead, brought
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.pushed_output import push_after, then_json
from exporter.cli.outputs.request_options import ResultNames
from exporter.cli.terminal_renderer import reporting
from exporter.core.errors import InputError
from exporter.core.paths import size_text
from exporter.model_store import adapter_file_name

if TYPE_CHECKING:
    from exporter.formats.gguf_lora import LoraFile

WITHOUT_MEANING = {
    "quants": "-q quantizes a merged model: a GGUF adapter is small and stays in float32",
    "merge_dtype": "--merge-dtype is for merging: --to lora merges nothing",
    "base_roundtrip": "--base-roundtrip is for merging: --to lora merges nothing",
    "threads": "--threads are for quantizing: --to lora quantizes nothing",
    "combine": "--combine is for merging: write one GGUF per adapter, and give llama-server"
    " --lora-scaled for each",
    "split_max_size": "--split-max-size is for GGUF models, not --to lora",
    "others": "--to lora makes one GGUF of one adapter: export the other by itself",
}


def export_lora(options: ExportOptions) -> None:
    """Write the first adapter as a GGUF and print it."""
    from exporter.core.atomic_file import refuse_existing
    from exporter.formats.gguf_lora import LoraRequest
    from exporter.formats.gguf_lora import export_lora as run
    from exporter.gguf_inputs.gguf_base import refuse_gguf_base
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.adapter_kinds import refuse_for_adapter_file
    from exporter.inputs.locate import need_adapters
    from exporter.llamacpp.toolchain import find_toolchain

    output_path(options.output, "adapter")  # raises for a name that no GGUF can have

    def refuse_output(name: str) -> None:
        refuse_existing(output_path(options.output, name), force=options.force)

    ahead = Ahead(
        "lora",
        refuse_output,
        refuse_kind=refuse_for_adapter_file,
        needs_adapter=True,
        needs_checkpoint=True,
    )
    pushing = push_after(options)
    if (found := brought(options, ahead)) is None:
        return
    adapters, base = found
    need_adapters(adapters, base, "--to lora")
    refuse_gguf_base(base, "lora")
    adapter = adapters[0]
    opened = open_adapter(adapter, refuse=refuse_for_adapter_file)
    names = ResultNames(opened.name, opened.exact_name)
    name = names.chosen(lambda by: (output_path(options.output, by),), quiet=options.quiet)
    request = LoraRequest(
        adapter,
        base,
        output_path(options.output, name),
        scale=options.scale,
        trust_remote_code=options.trust_remote_code,
        force=options.force,
    )
    with reporting(quiet=options.quiet) as report:
        made = run(request, find_toolchain(), dry_run=options.dry_run, report=report)
    value = asdict(made) | {"dry_run": options.dry_run}
    if not options.as_json:
        show(made, dry_run=options.dry_run)
    with then_json(value, as_json=options.as_json):
        if pushing is not None:
            value["pushed"] = pushing.of([made.path])


def output_path(output: Path | None, name: str) -> Path:
    """The named file, or one in the named folder or the store. Raises InputError for another
    name.
    """
    if output is not None and output.suffix == ".gguf" and not output.is_dir():
        return output
    if output is not None and output.suffix and not output.is_dir():
        raise InputError(
            f"`{output}` is not a name for a GGUF adapter",
            hint=f"-o {output.with_suffix('.gguf')}, or a folder",
        )
    return (output or store()) / adapter_file_name(name)


def show(made: LoraFile, *, dry_run: bool) -> None:
    click.echo(f"{made.path}")
    done = "would adapt" if dry_run else f"{made.seconds:.1f} s; adapts"
    click.echo(f"  F32, {size_text(made.nbytes)}; {done} {made.pairs} tensors", err=True)
    if not dry_run:
        click.echo("  use it with: llama-server -m BASE.gguf --lora FILE", err=True)


LORA = OutputFormat(
    "lora",
    "the adapter alone, for llama-server's --lora",
    export_lora,
    without_meaning=WITHOUT_MEANING,
    needs_adapter="--to lora needs an adapter: a base alone has no A and B",
    is_pushed=True,
)
