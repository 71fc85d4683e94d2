"""`decant export --to vllm`: adapters in a folder, with the command that serves them."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.outputs.output_format import ExportOptions, OutputFormat
from exporter.cli.outputs.request_options import show_absent
from exporter.cli.terminal_renderer import print_json, reporting
from exporter.core.paths import size_text
from exporter.model_store import plain_name

if TYPE_CHECKING:
    from exporter.formats.vllm import VllmFolder

NAME = re.compile(r"[\w.+-]+")
WITHOUT_MEANING = {
    "quants": "-q is for GGUF: vLLM serves the base as it is",
    "merge_dtype": "--merge-dtype is for merging: --to vllm merges nothing",
    "base_roundtrip": "--base-roundtrip is for merging: --to vllm merges nothing",
    "threads": "--threads are for quantizing: --to vllm quantizes nothing",
    "combine": "--combine is for merging: --to vllm keeps each adapter, under its name",
    "split_max_size": "--split-max-size is for GGUF models, not --to vllm",
    "trust_remote_code": "--trust-remote-code is vLLM's here: ./serve.sh --trust-remote-code",
}


def export_vllm(options: ExportOptions) -> None:
    """Write the folder and print it. Raises UsageError for two adapters of one name."""
    from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm
    from exporter.inputs.locate import Sources, absent, bring, need_adapters

    named = [(*split_name(text), scale) for text, scale in options.adapters]
    names = [name for name, _, _ in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.UsageError(f"two adapters are called {twice!r}: name them, NAME=PATH")
    places = tuple(place for _, place, _ in named)
    within = (options.revision, options.subfolder)
    sources = Sources(places, None, *within, needs_base=False)
    base, revision = split_revision(options.base)
    with reporting(quiet=options.quiet) as report:
        if options.dry_run and (pulls := absent(sources, report=report)):
            return show_absent(pulls, as_json=options.as_json)
        folders, whole = bring(sources, report=report)
        need_adapters(folders, whole, "--to vllm")
        request = VllmRequest(
            tuple(
                NamedAdapter(name, folder, scale)
                for (name, _, scale), folder in zip(named, folders, strict=True)
            ),
            options.output or Path(f"{plain_name(names[0])}-vllm"),
            base,
            revision,
            options.served_name,
            force=options.force,
        )
        made = export_for_vllm(request, dry_run=options.dry_run, report=report)
    return show(made, dry_run=options.dry_run, as_json=options.as_json)


def split_name(text: str) -> tuple[str, str]:
    """Parse NAME=PATH, or PATH, which gets the name that `decant serve` gives it.

    Raises UsageError for a name that clients cannot use.
    """
    name, equals, place = text.partition("=")
    if not equals or Path(text).exists():
        place = text
        name = Path(text).name.partition(".")[0].partition("@")[0]
    if not NAME.fullmatch(name) or name == "base" or not place:
        raise click.UsageError(f"{text!r} has no name that clients could use: NAME=PATH")
    return name, place


def split_revision(base: str | None) -> tuple[str | None, str | None]:
    """Parse a folder, ORG/NAME[@REVISION] or a link into base and revision."""
    if base is None or Path(base).exists():
        return base, None
    from exporter.hub.resolve import hub_here

    ref = hub_here().ref(base)
    return ref.repo, None if ref.revision == "main" else ref.revision


def show(made: VllmFolder, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(made) | {"dry_run": dry_run})
        return
    click.echo(f"{made.path}")
    done = "would hold" if dry_run else f"{made.seconds:.1f} s; holds"
    click.echo(f"  {size_text(made.nbytes)}; {done} {', '.join(made.models[1:])}", err=True)
    if not dry_run:
        click.echo(f"  then: {made.path / 'serve.sh'}", err=True)


VLLM = OutputFormat(
    "vllm",
    "the adapters, with the command for `vllm serve`",
    export_vllm,
    without_meaning=WITHOUT_MEANING,
    own={"served_name": "--name is for --to vllm; -o names the output"},
    needs_adapter="--to vllm needs an adapter: a base alone is `vllm serve BASE`",
)
