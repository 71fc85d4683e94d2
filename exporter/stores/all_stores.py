"""All models that other programs have on this machine, and how each is imported."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from exporter.model_store import StoredModel, list_models
from exporter.stores.hub_models import find_hub, hub_folder, hub_models
from exporter.stores.lmstudio_models import find_lmstudio, lmstudio_models
from exporter.stores.ollama_manifest import Manifest, read_manifest
from exporter.stores.ollama_models import PREFIX, find_named, ollama_models, opened
from exporter.stores.other_model import OtherModel, Program

FileId = tuple[int, int]
"""Device and inode: equal for all names of a file."""


def other_models(env: Mapping[str, str]) -> list[OtherModel]:
    """The models of Ollama, LM Studio and the hub's cache; only headers and lists are read."""
    return [model for program in get_args(Program) for model in models_of_program(program, env)]


def models_of_program(program: Program, env: Mapping[str, str]) -> list[OtherModel]:
    if program == "ollama":
        return ollama_models(env)
    return lmstudio_models() if program == "lmstudio" else hub_models(hub_folder())


def find_other(
    program: Program, name: str, env: Mapping[str, str]
) -> tuple[OtherModel, Manifest | None]:
    """A model of another program's, with its manifest if that is Ollama.

    Raises ModelError, with the nearest names, without one.
    """
    if program == "lmstudio":
        return find_lmstudio(name), None
    if program == "hf":
        return find_hub(name, hub_folder()), None
    named = find_named(name.removeprefix(PREFIX), env)
    manifest = read_manifest(named.path, named.home)
    return opened(named, manifest), manifest


def file_id(path: Path) -> FileId | None:
    """The identity of a file; None if it cannot be asked."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def here_by_file(store: Path) -> dict[FileId, StoredModel]:
    """The models of decant's store by their files, to recognize those that are linked."""
    found = ((file_id(model.path), model) for model in list_models(store))
    return {key: model for key, model in found if key}


def advice(model: OtherModel, here: Mapping[FileId, StoredModel]) -> str:
    """The command that imports a model, its name in the store, or why it cannot be imported."""
    key = file_id(model.files[0].path) if model.files else None
    if key and key in here:
        return f"here as {here[key].full_name}"
    if model.problem:
        return f"{model.problem}; {model.instead}" if model.instead else model.problem
    return f"decant import --from {model.program} {shlex.quote(model.name)}"


def row(model: OtherModel, here: Mapping[FileId, StoredModel]) -> dict[str, object]:
    """A model as `decant list --all --json` prints it."""
    return {
        "store": model.program,
        "name": model.name,
        "nbytes": model.nbytes,
        "path": str(model.files[0].path) if model.files else None,
        "to_import": advice(model, here),
        "problem": model.problem or None,
    }


def rows(models: Sequence[OtherModel], store: Path) -> list[dict[str, object]]:
    here = here_by_file(store)
    return [row(model, here) for model in models]
