"""`decant export --to safetensors`: a merged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.outputs.brought_inputs import Ahead, brought
from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import (
    folder_by,
    merge_request,
    output_folder,
    refuse_file,
    show_folder,
)
from exporter.cli.sizes import parse_size
from exporter.cli.terminal_renderer import reporting
from exporter.core.errors import ToolchainError

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain


def export_safetensors(options: ExportOptions) -> None:
    """Write the folder and print it."""
    from exporter.formats.safetensors_folder import refuse_folder, save_merged
    from exporter.gguf_inputs.gguf_base import refuse_gguf_base

    refuse_file(options.output, "safetensors")
    max_shard = parse_size("--max-shard-size", options.max_shard_size)

    def refuse_output(name: str) -> None:
        refuse_folder(output_folder(options, "merged", name), force=options.force)

    ahead = Ahead(
        "safetensors",
        refuse_output,
        sizes=("the merged model, in 16 bits,",),
        folder=options.output or Path(),
        needs_checkpoint=True,
        needs_build=False,
    )
    if (found := brought(options, ahead)) is None:
        return
    names, request = merge_request(options, *found)
    refuse_gguf_base(request.base, "safetensors")
    folder = folder_by(names, options, "merged")
    with reporting(quiet=options.quiet) as report:
        made = save_merged(
            request,
            folder,
            toolchain_if_built(),
            max_shard=max_shard,
            dry_run=options.dry_run,
            report=report,
        )
    show_folder(made, dry_run=options.dry_run, as_json=options.as_json)


def toolchain_if_built() -> Toolchain | None:
    """The build of llama.cpp if there is one: only some quantized bases need it."""
    from exporter.llamacpp.toolchain import find_toolchain

    try:
        return find_toolchain()
    except ToolchainError:
        return None


SAFETENSORS = OutputFormat(
    "safetensors",
    "a merged checkpoint",
    export_safetensors,
    without_meaning={
        "quants": "-q is for GGUF: --to safetensors keeps the base's type",
        "split_max_size": "--split-max-size is for GGUF models, not --to safetensors",
    },
    own={"max_shard_size": "--max-shard-size is for --to safetensors"},
)
