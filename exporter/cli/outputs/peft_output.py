"""`decant export --to peft`: an adapter that PEFT does not read, as PEFT saves it."""

from __future__ import annotations

import click

from exporter.cli.outputs.brought_inputs import Ahead, brought
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import ResultNames, folder_by, output_folder
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.errors import UnsupportedError

WITHOUT_MEANING = {
    "quants": "-q quantizes a merged model: --to peft keeps the adapter's own numbers",
    "merge_dtype": "--merge-dtype is for merging: --to peft merges nothing",
    "base_roundtrip": "--base-roundtrip is for merging: --to peft merges nothing",
    "threads": "--threads are for quantizing: --to peft quantizes nothing",
    "combine": "--combine is for merging: --to peft merges nothing",
    "others": "--to peft makes one folder of one adapter: export the other by itself",
    "scale": "--scale is for merging: in PEFT, it is lora_alpha",
    "split_max_size": "--split-max-size is for GGUF models, not --to peft",
}


def export_peft(options: ExportOptions) -> None:
    """Write the folder and print it. Raises UnsupportedError for an adapter that PEFT already
    reads.
    """
    from exporter.core.atomic_folder import atomic_folder, refuse_taken
    from exporter.gguf_inputs.gguf_base import refuse_gguf_base
    from exporter.gguf_inputs.placed_adapter import on_base
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.locate import find_base, need_adapters
    from exporter.inputs.open_checkpoint import open_checkpoint
    from exporter.inputs.peft_folder import can_be_written, write_peft

    marks, force = ("adapter_config.json",), options.force

    def refuse_output(name: str) -> None:
        refuse_taken(output_folder(options, "peft", name), marks, force=force)

    ahead = Ahead(
        "peft", refuse_output, needs_adapter=True, needs_checkpoint=True, needs_build=False
    )
    if (found := brought(options, ahead)) is None:
        return
    adapters, base = found
    need_adapters(adapters, base, "--to peft")
    refuse_gguf_base(base, "peft")
    dry_run, trust = options.dry_run, options.trust_remote_code
    with reporting(quiet=options.quiet) as report:
        adapter = open_adapter(adapters[0], report=report)
        names = ResultNames(adapter.name, adapter.exact_name)
        folder = folder_by(names, options, "peft")
        refuse_taken(folder, marks, force=force)
        if adapter.read_by_peft:
            raise UnsupportedError(
                f"`{adapter.folder}` is a PEFT adapter already", hint="leave out --to peft"
            )
        if not can_be_written(adapter):
            raise UnsupportedError(
                f"`{adapter.folder}` holds more than pairs and whole tensors",
                hint="leave out --to peft: the merged model can hold it",
            )
        if adapter.origin == "gguf" or base is not None:
            place = base or find_base(adapter, report=report)
            checkpoint = open_checkpoint(place, trust_remote_code=trust)
            adapter = on_base(adapter, checkpoint, None, trust_remote_code=trust, report=report)
        if not dry_run:
            with atomic_folder(
                folder, plan=adapter.sha256(), marks=marks, force=force, report=report
            ) as new:
                write_peft(adapter, new)
    if options.as_json:
        print_json({"path": str(folder), "pairs": len(adapter.pairs), "dry_run": dry_run})
        return
    click.echo(f"{folder}")
    click.echo(f"  {'would hold' if dry_run else 'holds'} {len(adapter.pairs)} pairs", err=True)


PEFT = OutputFormat(
    "peft",
    "an MLX or GGUF adapter as PEFT's",
    export_peft,
    without_meaning=WITHOUT_MEANING,
    needs_adapter="--to peft needs an adapter: a base alone has no A and B",
)
