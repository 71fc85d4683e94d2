"""`decant export --to safetensors`: a merged checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import (
    brought,
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
    from exporter.formats.safetensors_folder import save_merged
    from exporter.gguf_inputs.gguf_base import refuse_gguf_base

    refuse_file(options.output, "safetensors")
    if (found := brought(options)) is None:
        return
    name, request = merge_request(options, *found)
    refuse_gguf_base(request.base, "safetensors")
    folder = output_folder(options, name, "merged")
    max_shard = parse_size("--max-shard-size", options.max_shard_size)
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
