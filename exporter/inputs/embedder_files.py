"""Files of a sentence-transformers folder: modules.json and the files it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
LIMITS = ("sentence_bert_config.json", "sentence_roberta_config.json")
MODULE_FILES = (MODULES, CONFIG, *LIMITS)
"""Files beside a model's config.json that say how to compute vectors with it."""


@dataclass(frozen=True, slots=True)
class Module:
    """One step of modules.json."""

    kind: str
    """The class name without its package."""
    path: str
    """The folder inside the model's; empty for the model itself."""
    settings: dict[str, Any]


def read_modules(folder: Path) -> tuple[Module, ...]:
    """The steps in a folder's modules.json; empty without such a file.

    Raises CheckpointError if it, or a module's config.json, is damaged.
    """
    path = folder / MODULES
    if not path.is_file():
        return ()
    hint = "download or copy the file again"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"`{path}` is not JSON: {error}", hint=hint) from error
    if not isinstance(listed, list) or not all(is_module(entry) for entry in listed):
        raise CheckpointError(
            f"`{path}` is not a list of modules, each with path and type", hint=hint
        )
    modules = []
    for entry in listed:
        inside = entry["path"]
        if PurePosixPath(inside).is_absolute() or ".." in PurePosixPath(inside).parts:
            raise CheckpointError(f"`{path}` names {inside!r}, which is not inside", hint=hint)
        config = folder / inside / "config.json"
        kind = entry["type"].rpartition(".")[2]
        settings = (
            read_json_object(config, error=CheckpointError, hint=hint)
            if inside and config.is_file()
            else {}
        )
        modules.append(Module(kind, inside, settings))
    return tuple(modules)


def is_module(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("path", "type")
    )


def module_files(folder: Path) -> Iterator[str]:
    """All files of the modules with a folder, relative to `folder`."""
    for module in read_modules(folder):
        if module.path:
            root = folder / module.path
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    yield path.relative_to(folder).as_posix()


def module_folders(folder: Path) -> tuple[str, ...]:
    """The module folders of a finished result; empty without modules."""
    try:
        modules = read_modules(folder)
    except CheckpointError:
        return ()
    return tuple(PurePosixPath(module.path).parts[0] for module in modules if module.path)
