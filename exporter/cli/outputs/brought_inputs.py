"""Pulls an export's missing inputs, after it has raised the errors that are known before.

A base takes gigabytes and a build of llama.cpp ten minutes. Errors of the adapter, the output and
the disk are raised before both, and a missing build is reported before the base is pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.common_options import store
from exporter.cli.outputs.output_format import ExportOptions
from exporter.cli.outputs.request_options import show_absent
from exporter.cli.terminal_renderer import reporting
from exporter.core.errors import OutputError
from exporter.core.events import Report, silent

if TYPE_CHECKING:
    from exporter.hub.pull import Pulled, PullRequest
    from exporter.inputs.locate import Sources

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapters.safetensors")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
KindRefusal = Callable[[dict[str, object], Path], None]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The checks of one format of `--to` before a base is pulled."""

    to: str
    refuse_output: Callable[[str], None]
    """Raises if the output for a result of this name exists."""
    sizes: Sequence[str] = ()
    """The types of the results, whose room on the disk is checked; empty for small results."""
    folder: Path | None = None
    """The folder that the results are written to."""
    refuse_kind: KindRefusal | None = None
    """Raises for a kind of adapter that the format cannot hold; None refuses kinds that cannot be
    merged.
    """
    needs_adapter: bool = False
    needs_checkpoint: bool = False
    """Whether a GGUF as the base is refused."""
    needs_build: bool = True


def brought(options: ExportOptions, ahead: Ahead) -> tuple[list[Path], Path | None] | None:
    """The local paths of adapters and base, pulled if missing; adapters first, which are small.

    None if a dry run has listed the missing files. Before a base is pulled, it raises an export's
    errors of the adapters, the output, the disk and the build.
    """
    from exporter.inputs.locate import Sources, absent, bring

    named = tuple(text for text, _ in options.adapters)
    sources = Sources(named, options.base, options.revision, options.subfolder)
    with reporting(quiet=options.quiet) as report:
        if options.dry_run and (pulls := absent(sources, report=report)):
            show_absent(pulls, as_json=options.as_json)
            return None
        if not options.dry_run:
            refuse_ahead(sources, options, ahead, report)
        return bring(sources, report=report)


def refuse_ahead(sources: Sources, options: ExportOptions, ahead: Ahead, report: Report) -> None:
    """Raise UnsupportedError, OutputError, SpaceError, ToolchainError or an input's error.

    The user's mistakes come first, then the disk, then the build.
    """
    from exporter.cli.outputs.room_ahead import check_room
    from exporter.core.errors import UnsupportedError
    from exporter.inputs.locate import absent
    from exporter.llamacpp.toolchain import find_toolchain

    base = options.base
    if ahead.needs_checkpoint and base is not None and is_named_gguf(base):
        raise UnsupportedError(
            f"`{base}` is a GGUF, and --to {ahead.to} needs the base's config.json and tokenizer",
            hint=f"leave out --to {ahead.to}, or name the checkpoint's repo as --base ORG/NAME",
        )
    named = refused_inputs(sources, options.trust_remote_code, ahead, report)
    if named is not None:
        refuse_output(ahead, *named)
    pulls = absent(sources, report=silent)  # the pull reports it again
    if pulls and ahead.sizes:
        check_room(pulls, ahead.folder or store(), ahead.sizes, report)
    if ahead.needs_build:
        find_toolchain()


def is_named_gguf(base: str) -> bool:
    from exporter.hub.resolve import names_gguf
    from exporter.stores.ollama_models import is_ollama

    return is_ollama(base) or names_gguf(base)


def refuse_output(ahead: Ahead, name: str, checkpoint: Path | None) -> None:
    """Raise OutputError if the output exists, which an earlier checkpoint may have given."""
    from exporter.inputs.locate import quoted

    try:
        ahead.refuse_output(name)
    except OutputError as error:
        if checkpoint is None or "--force" not in (error.hint or ""):
            raise
        raise OutputError(
            error.message,
            hint=f"{error.hint}; to keep both, name the checkpoint: decant export"
            f" {quoted(checkpoint)}",
        ) from error


def refused_inputs(
    sources: Sources, trust: bool, ahead: Ahead, report: Report
) -> tuple[str, Path | None] | None:
    """The result's name, and the checkpoint that decant chose in a training run, if it did.

    None if something must be pulled to know the name.

    Raises for adapters and local bases that cannot be used. An adapter's repo is pulled; a whole
    model's is not.
    """
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.adapter_kinds import refuse_unmergeable
    from exporter.inputs.find_model import model_in_place_of_adapter
    from exporter.inputs.locate import need_adapters

    places = [near(*placed, report=report) for placed in sources.placed]
    adapters = []
    for place in places:
        if place is None:
            continue
        if isinstance(place, Path) and model_in_place_of_adapter(place, report=silent) is None:
            refuse = ahead.refuse_kind or refuse_unmergeable
            adapters.append(open_adapter(place, refuse=refuse))
        elif ahead.needs_adapter:
            need_adapters([], folder_at(place), f"--to {ahead.to}")
    base = near(sources.base, None, None, report=report) if sources.base is not None else None
    if isinstance(base, Path):
        refuse_base(base, ahead, trust=trust)
    if None in places:
        return None
    if adapters:
        chosen = next((adapter.folder for adapter in adapters if adapter.run), None)
        return "-".join(adapter.name for adapter in adapters), chosen
    whole = next(iter(places), base)
    return (base_name(folder_at(whole)), None) if whole is not None else None


def folder_at(place: Path | Pulled) -> Path:
    return place if isinstance(place, Path) else place.folder


def refuse_base(base: Path, ahead: Ahead, *, trust: bool) -> None:
    """Raise CheckpointError and others for a local base that cannot be read."""
    from exporter.gguf_inputs.gguf_base import is_gguf, refuse_gguf_base
    from exporter.inputs.find_model import find_model
    from exporter.inputs.open_checkpoint import open_checkpoint

    found = find_model(base, report=silent)
    if is_gguf(found):
        if ahead.needs_checkpoint:
            refuse_gguf_base(found, ahead.to)
    elif not (found / ADAPTER_CONFIG).exists():  # an adapter is refused by `bring`
        open_checkpoint(found, trust_remote_code=trust)


def base_name(base: Path) -> str:
    from exporter.core.paths import model_name
    from exporter.gguf_inputs.gguf_base import gguf_name, is_gguf

    return gguf_name(base) if is_gguf(base) else model_name(base)


def near(
    text: str, revision: str | None, subfolder: str | None, *, report: Report
) -> Path | Pulled | None:
    """A local path, or an adapter's folder after its pull, or the planned pull of a whole model.

    None for a repo whose kind is known only after the pull.
    """
    from exporter.hub.pull import pull
    from exporter.hub.resolve import names_gguf, pulled_folder
    from exporter.inputs.locate import place_of, request_for

    request = request_for(text, revision=revision, subfolder=subfolder, report=silent)
    if request is None:
        return place_of(text, revision=revision, subfolder=subfolder, report=report)
    if names_gguf(text):
        return None
    names = names_in(request)
    has_weights = any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS)
    if names.intersection(ADAPTER_FILES):
        return None if has_weights else pulled_folder(request, report=report)
    return pull(request, dry_run=True) if CONFIG in names and has_weights else None


def names_in(request: PullRequest) -> set[str]:
    """The files in the wanted folder of a repo."""
    inside = f"{request.ref.folder}/" if request.ref.folder else ""
    files = request.known.files if request.known else ()
    return {file.path.removeprefix(inside) for file in files if file.path.startswith(inside)}
