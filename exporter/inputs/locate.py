"""Locates the adapter and base of an export: local folders, or hub repos pulled if missing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import AdapterError, CheckpointError, DownloadError
from exporter.core.events import Note, Report, silent
from exporter.hub.pull import Pulled, PullRequest, pull
from exporter.hub.resolve import (
    checkpoint_request,
    folder_of,
    gguf_request,
    hub_here,
    is_repo,
    names_gguf,
    pull_gguf,
    pulled_folder,
)
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.base_hints import base_of_card, hint_for_absent
from exporter.inputs.find_adapter import CONFIG
from exporter.inputs.find_model import find_model, model_in_place_of_adapter
from exporter.stores.ollama_models import is_ollama, ollama_gguf


@dataclass(frozen=True, slots=True)
class Sources:
    """The inputs of an export as the user named them."""

    adapters: tuple[str, ...]
    base: str | None
    revision: str | None = None
    """Revision of the first adapter's repo."""
    subfolder: str | None = None
    """Subfolder of the first adapter's repo or folder."""
    needs_base: bool = True
    """Whether the base must be present, too."""

    @property
    def placed(self) -> list[tuple[str, str | None, str | None]]:
        """Each adapter with its revision and subfolder."""
        options = [(self.revision, self.subfolder)] + [(None, None)] * len(self.adapters)
        return [(text, *within) for text, within in zip(self.adapters, options, strict=False)]


def bring(sources: Sources, *, report: Report = silent) -> tuple[list[Path], Path | None]:
    """The local paths of the adapters and the named base, pulled if missing.

    A whole model in place of the only adapter becomes the base. Raises AdapterError for a whole
    model beside a base or other adapters, CheckpointError for an adapter as base.
    """
    adapters = [
        place_of(text, revision=revision, subfolder=subfolder, report=report)
        for text, revision, subfolder in sources.placed
    ]
    if sources.base is not None:
        base = find_model(place_of(sources.base, report=report), report=report)
        refuse_mistaken(adapters, base)
        return adapters, base
    whole = model_in_place_of_adapter(adapters[0], report=report) if adapters else None
    if whole is None:
        return adapters, None
    if adapters[1:]:
        raise AdapterError(
            f"`{adapters[0]}` is a whole model, no adapter",
            hint=f"decant export - --base {adapters[0]} --adapter {adapters[1]}",
        )
    return [], whole


def refuse_mistaken(adapters: list[Path], base: Path) -> None:
    """Raise AdapterError for a model among the adapters, CheckpointError for an adapter as base."""
    is_adapter = not (base / "config.json").exists() and (base / CONFIG).exists()
    for place in adapters:
        if model_in_place_of_adapter(place, report=silent) is None:
            if is_adapter:
                raise CheckpointError(
                    f"`{base}` is an adapter, no base model",
                    hint="leave out --base: the adapter names its own"
                    if place == base
                    else f"where `{place}` was trained on top of it, `decant export"
                    f" {quoted(base)} --adapter {quoted(place)}` merges both into its base",
                )
            continue
        exported = f"`decant export {quoted(place)}` exports it unchanged"
        raise AdapterError(
            f"`{place}` is a whole model, no adapter",
            hint=f"`decant export {quoted(base)} --base {quoted(place)}` exchanges the two"
            if is_adapter
            else f"{exported}; `decant extract {quoted(place)} --base {quoted(base)}` makes a LoRA"
            " of what it changed",
        )


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def place_of(
    text: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    report: Report = silent,
) -> Path:
    """Resolve `text`: a local path, a model of Ollama's, a repo's folder or one of its GGUFs."""
    if is_ollama(text):
        return ollama_gguf(text)
    if names_gguf(text):
        return pull_gguf(text, report=report)
    return folder_of(text, revision=revision, subfolder=subfolder, report=report)


def request_for(
    text: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    report: Report = silent,
) -> PullRequest | None:
    """The pull that `text` needs; None for a local path."""
    if is_ollama(text):
        return None
    if names_gguf(text):
        return gguf_request(text, report=report)[0]
    if is_repo(text):
        return checkpoint_request(text, revision=revision, subfolder=subfolder, report=report)
    return None


def absent(sources: Sources, *, report: Report = silent) -> tuple[Pulled, ...]:
    """The pulls that an export of these sources needs; nothing is pulled.

    The base is known only if it is named, or if the first adapter is local.
    """
    requests = [
        request_for(text, revision=revision, subfolder=subfolder, report=report)
        for text, revision, subfolder in sources.placed
    ]
    pulls = [pull(request, dry_run=True, report=report) for request in requests if request]
    base = request_for(sources.base, report=report) if sources.base is not None else None
    if sources.base is None and sources.needs_base and requests:
        is_here = requests[0] is None or not pulls[0].missing
        base = base_of_first(sources, report=report) if is_here else None
    if base is not None:
        pulls.append(pull(base, dry_run=True, report=report))
    return tuple(pulled for pulled in pulls if pulled.missing)


def base_of_first(sources: Sources, *, report: Report) -> PullRequest | None:
    """The pull of the base that the first, local adapter names."""
    text, revision, subfolder = sources.placed[0]
    first = place_of(text, revision=revision, subfolder=subfolder, report=report)
    if model_in_place_of_adapter(first, report=silent) is not None:
        return None
    named = named_base(open_adapter(first, refuse=nothing), report=report)
    return named if isinstance(named, PullRequest) else None


def nothing(config: dict[str, object], folder: Path) -> None:
    """A `refuse` that accepts every kind of adapter: all of them name a base."""


def need_adapters(folders: list[Path], base: Path | None, what: str) -> None:
    """Raise AdapterError if an output needs adapters and a whole model was named."""
    if not folders:
        raise AdapterError(
            f"`{base}` is a whole model: {what} needs an adapter",
            hint="leave out --to: the model is exported unchanged",
        )


def find_base(adapter: AdapterSpec, *, report: Report = silent) -> Path:
    """The folder of the adapter's base: local, beside the adapter, or pulled from the hub."""
    found = named_base(adapter, report=report)
    return found if isinstance(found, Path) else pulled_folder(found, report=report)


def named_base(adapter: AdapterSpec, *, report: Report = silent) -> Path | PullRequest:
    """The local folder of the adapter's base, else the pull that brings it.

    Raises AdapterError for a base that is an adapter or is not named, DownloadError if no endpoint
    answers.
    """
    named = Path(adapter.base or "")
    for folder in (named, adapter.folder / named) if adapter.base else ():
        if (folder / "config.json").exists():
            return folder
        if adapter.base and (folder / CONFIG).exists():
            raise AdapterError(
                f"`{adapter.folder}` was trained on `{folder}`, which is an adapter itself",
                hint=f"`decant export {quoted(folder)} --adapter {quoted(adapter.folder)}` merges"
                " both into its base",
            )
    if adapter.base and is_repo(adapter.base):
        hub = hub_here()
        revision = adapter.config.get("revision")  # of the base, in PEFT's configs
        try:
            return checkpoint_request(
                adapter.base,
                revision=revision if isinstance(revision, str) else None,
                hub=hub,
                report=report,
            )
        except DownloadError as error:
            if not hub.offline:
                raise DownloadError(
                    f"the base {adapter.base!r} that `{adapter.folder}` was trained on is not"
                    f" here and cannot be pulled: {error.message}",
                    hint=f"pass its folder as --base FOLDER; or: {error.hint}",
                ) from error
    return base_elsewhere(adapter, report=report)


def base_elsewhere(adapter: AdapterSpec, *, report: Report) -> Path | PullRequest:
    """The base in the adapter's model card, for a config that names only a path or nothing.

    Raises AdapterError, with a suggestion for --base, if the card does not name it either.
    """
    what = (
        f"the base {adapter.base!r} that `{adapter.folder}` was trained on is not here"
        if adapter.base
        else f"`{adapter.folder}` does not say which base it was trained on"
    )
    repo = base_of_card(adapter.folder)
    if adapter.base and repo in (None, adapter.base) and is_repo(adapter.base):
        raise AdapterError(
            f"{what}, and decant is offline",
            hint="leave out --offline (or unset HF_HUB_OFFLINE), or pass its folder as --base"
            " FOLDER",
        )
    if repo is None or repo == adapter.base:
        raise AdapterError(what, hint=hint_for_absent(adapter, hub_here().cache))
    report(Note(f"{what}: its model card names {repo}, which is used"))
    return checkpoint_request(repo, report=report)
