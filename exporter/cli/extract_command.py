"""The command `decant extract`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.common_options import json_option, offline_option, quiet_option
from exporter.cli.export_command import require_packages
from exporter.cli.outputs.lora_output import output_path
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.paths import size_text
from exporter.model_store import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporter.extract import Extracted, KeptChange

BLOCK = re.compile(r"\.(\d+)\.")


@click.command(epilog="Example: decant extract ./my-model --base ORG/NAME --rank 64")
@click.argument("fine_tune")
@click.option(
    "--base", required=True,
    help="The model that the fine-tune began from: a folder, ORG/NAME[@REVISION], or a link to it.",
)  # fmt: skip
@click.option(
    "--rank", type=click.IntRange(1, 4096), default=32, show_default=True,
    help="Rank of every pair: a larger one keeps more of the change.",
)  # fmt: skip
@click.option(
    "--to", type=click.Choice(("peft", "lora")), default="peft", show_default=True,
    help="peft: a folder for `decant export` and peft; lora: a GGUF adapter, for"
    " `decant chat BASE.gguf --adapter`.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="The new folder, or FILE.gguf. Without it: NAME-lora here, or a GGUF in the store.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@offline_option
@json_option
@quiet_option
def extract(
    fine_tune: str,
    base: str,
    rank: int,
    to: str,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a LoRA adapter of what a full fine-tune changed in its base.

    Each matrix's change becomes the pair of the given rank that loses least of it (truncated SVD),
    and the table shows how much of it that pair keeps. Many fine-tunes can then share one base in
    `decant serve`.
    """
    require_packages()
    from exporter.extract import ExtractRequest, as_gguf
    from exporter.extract import extract as run
    from exporter.hub.resolve import folder_of

    with reporting(quiet=quiet) as report, tempfile.TemporaryDirectory() as temporary:
        tuned, folder = (folder_of(named, report=report) for named in (fine_tune, base))
        name = plain_name(tuned.resolve().name)
        is_gguf = to == "lora"
        place = Path(temporary) / name if is_gguf else output or Path(f"{name}-lora")
        named = base if not Path(base).is_dir() else str(folder.resolve())
        request = ExtractRequest(tuned, folder, place, rank, named, is_gguf, force)
        found = run(request, report=report)
        path = found.folder
        if is_gguf:
            path = as_gguf(found, folder, output_path(output, name), force=force, report=report)
    show(found, path, as_json=as_json)


def show(found: Extracted, path: Path, *, as_json: bool) -> None:
    if as_json:
        matrices = [asdict(kept) | {"kept": kept.share} for kept in found.matrices]
        print_json(asdict(found) | {"folder": path, "kept": found.kept, "matrices": matrices})
        return
    print_table(
        ("LAYER", "MATRICES", "CHANGED BY", "KEPT", "LEAST KEPT"),
        [row(block, list(matrices)) for block, matrices in blocks(found.matrices)],
    )
    click.echo(path)
    click.echo(
        f"  rank {found.rank} keeps {found.kept:.1%} of the change in {len(found.matrices)}"
        f" matrices; {size_text(found.nbytes)}, {found.seconds:.1f} s",
        err=True,
    )


def blocks(matrices: tuple[KeptChange, ...]) -> Iterator[tuple[str, list[KeptChange]]]:
    """The matrices of each layer, by its number; those outside all layers first."""
    found: dict[str, list[KeptChange]] = {}
    for kept in matrices:
        number = BLOCK.search(kept.name)
        found.setdefault(number[1] if number else "-", []).append(kept)
    yield from sorted(found.items(), key=lambda item: int(item[0]) if item[0] != "-" else -1)


def row(block: str, matrices: list[KeptChange]) -> tuple[str, ...]:
    from exporter.extract import kept_share

    changed = sum(kept.change**2 for kept in matrices) ** 0.5
    size = sum(kept.weight**2 for kept in matrices) ** 0.5
    least = min(matrices, key=lambda kept: kept.share)
    return (
        block, str(len(matrices)), f"{changed / size:.2%}" if size else "-",
        f"{kept_share(matrices):.1%}", f"{least.name}: {least.share:.1%}",
    )  # fmt: skip
