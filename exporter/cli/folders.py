"""`decant export --to safetensors` and `--to ollama`: outputs that are folders."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.render import print_json, reporting
from exporter.core.errors import ToolchainError
from exporter.core.folders import size_text
from exporter.store import plain_name

if TYPE_CHECKING:
    from exporter.request import ExportRequest, FolderResult
    from exporter.toolchain import Toolchain

ENDINGS = {"safetensors": "merged", "ollama": "ollama"}
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def folder_name(name: str, to: str) -> Path:
    """Where a result goes that -o does not place: beside the user's other work."""
    return Path(f"{plain_name(name)}-{ENDINGS[to]}")


def export_folder(to: str, request: ExportRequest, folder: Path, max_shard_size: str) -> None:
    """Write the folder that `to` means and show it."""
    from exporter.gguf_base import refuse_gguf_base

    options = click.get_current_context().params
    refuse_gguf_base(request.base, to)
    if folder.suffix in (".gguf", ".safetensors"):
        raise click.UsageError(f"--to {to} makes a folder: `-o {folder.with_suffix('')}`")
    if to == "ollama" and request.split_max:
        raise click.UsageError("Ollama imports no split GGUF: leave out --split-max-size")
    if to == "ollama" and len(request.quants) > 1:
        raise click.UsageError("a Modelfile names one GGUF: give -q once with --to ollama")
    dry_run, max_shard = options["dry_run"], parse_size("--max-shard-size", max_shard_size)
    with reporting(quiet=options["quiet"]) as report:
        if to == "ollama":
            from exporter.calibrate import with_matrix
            from exporter.ollama_folder import export_for_ollama
            from exporter.toolchain import find_toolchain

            toolchain = find_toolchain()
            request = with_matrix(request, toolchain, dry_run=dry_run, report=report)
            made = export_for_ollama(request, folder, toolchain, dry_run=dry_run, report=report)
        else:
            from exporter.save import save_merged

            made = save_merged(
                request,
                folder,
                toolchain_if_built(),
                max_shard=max_shard,
                dry_run=dry_run,
                report=report,
            )
    show_folder(made, dry_run=dry_run, as_json=options["as_json"])


def toolchain_if_built() -> Toolchain | None:
    """A merged checkpoint needs llama.cpp only to read bases quantized in some ways."""
    from exporter.toolchain import find_toolchain

    try:
        return find_toolchain()
    except ToolchainError:
        return None


def parse_size(option: str, text: str) -> int:
    """Bytes from 5GB, 500MB, 2GiB or a plain number, as transformers means them."""
    found = re.fullmatch(r"(\d+)\s*([KMG](?:I?B)?|)", text.strip().upper())
    if not found or not int(found[1]):
        raise click.UsageError(f"{option} {text!r} is no size, such as 5GB or 500MB")
    return int(found[1]) * UNITS.get(found[2], UNITS.get(found[2][:1], 1))


def show_folder(made: FolderResult, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(made) | {"dry_run": dry_run})
        return
    click.echo(f"{made.path}")
    click.echo(f"  {size_text(made.nbytes)} in {files_text(len(made.files))}", err=True)
    done = "would change" if dry_run else f"{made.seconds:.1f} s; merged"
    click.echo(f"{done} {made.merged} of {made.tensors} tensors", err=True)


def files_text(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
