"""Gives a GGUF to Ollama by writing its layout: blobs first, the manifest last.

The GGUF becomes a blob by a link. Blobs without a manifest are harmless: Ollama deletes them when
it starts. The manifest gets its name when it is complete; until then it lies above the folders in
which Ollama looks for manifests. Nothing that exists is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import (
    atomic_write,
    existing_part,
    explained,
    is_there,
    link_new,
    make_folder,
    open_locked,
    partial_path,
    sync_folder,
)
from exporter.core.errors import DecantError, OutputError
from exporter.stores.file_link import LinkKind, is_same, link_file
from exporter.stores.ollama_manifest import (
    CONFIG,
    KIND,
    MANIFEST,
    SCHEMA,
    blob_place,
    read_manifest,
)
from exporter.stores.ollama_models import Named, all_named, ollama_homes
from exporter.stores.ollama_names import OllamaName

PARTIAL = ".decant.partial"
"""Name of an unfinished manifest; Ollama reads manifests four folders below."""
NOT_WRITABLE = (
    "`--copy` sends a copy over the API of a running Ollama; or name a store that you may write to"
    " with OLLAMA_MODELS"
)


@dataclass(frozen=True, slots=True)
class LinkedBlob:
    """A GGUF that becomes a blob by a link."""

    kind: str
    """The kind of its layer: model or projector."""
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model for Ollama."""

    name: OllamaName
    linked: tuple[LinkedBlob, ...]
    """The model, and its projector if it has one."""
    texts: tuple[tuple[str, bytes], ...]
    """Small layers: their kinds and contents."""
    config: Mapping[str, Any]  # JSON


def write_model(new: NewModel, home: Path, *, if_taken: str) -> LinkKind:
    """Write the model into the store `home`; says how the GGUF is linked, or that it was there.

    if_taken: the hint for a name that another model has. Raises OutputError.
    """
    if (named := find_same_name(new.name, home)) and is_same_model(new, named):
        delete_second_name(home / "manifests" / PARTIAL, named.path)
        return "same"
    refuse_taken(new.name, home, if_taken)
    refuse_read_only(home)
    manifest, kind = write_blobs(new, home / "blobs")
    publish_manifest(new.name, as_json(manifest), home, if_taken)
    write_blobs(new, home / "blobs")  # an Ollama that has just started may have deleted unused ones
    return kind


def refuse_read_only(home: Path) -> None:
    """Raise OutputError for a store that this user may not write to."""
    for folder in (home / "blobs", home / "manifests"):
        if not os.access(existing_part(folder), os.W_OK):
            raise OutputError(f"you may not write to Ollama's store `{folder}`", hint=NOT_WRITABLE)


def write_blobs(new: NewModel, blobs: Path) -> tuple[dict[str, Any], LinkKind]:
    """Write the blobs that are missing; gives the manifest, and how the GGUF is linked."""
    kinds = [link_blob(blob, blobs) for blob in new.linked]
    layers = [layer(KIND + blob.kind, blob.sha256, blob.path.stat().st_size) for blob in new.linked]
    layers += [small_blob(KIND + kind, content, blobs) for kind, content in new.texts]
    config = small_blob(CONFIG, as_json(new.config), blobs)
    manifest = {
        "schemaVersion": SCHEMA, "mediaType": MANIFEST, "config": config, "layers": layers,
    }  # fmt: skip
    return manifest, kinds[0]


def find_same_name(name: OllamaName, home: Path) -> Named | None:
    """The manifest of a name, which Ollama compares without case."""
    return next((one for one in all_named(home) if one.name.folded == name.folded), None)


def is_same_model(new: NewModel, named: Named) -> bool:
    """Whether a name belongs to the same GGUF already."""
    try:
        layers = read_manifest(named.path, named.home).of("model")
    except DecantError:
        return False
    return [one.sha256 for one in layers] == [new.linked[0].sha256]


def refuse_taken(name: OllamaName, home: Path, hint: str) -> None:
    """Raise OutputError for a name that a model has."""
    if find_same_name(name, home):
        raise OutputError(f"Ollama has a model {str(name)!r} already", hint=hint)


def link_blob(blob: LinkedBlob, blobs: Path) -> LinkKind:
    """Link a GGUF as a blob; a blob of the same hash is used as it is. Raises OutputError."""
    place = blob_place(blobs, blob.sha256)
    if is_there(place) and place.stat().st_size == blob.path.stat().st_size:
        return "same"
    again = f"it is not the file that its name states: delete it, then try again: rm {place}"
    return link_file(blob.path, place, if_taken=again, if_refused=NOT_WRITABLE)


def small_blob(kind: str, content: bytes, blobs: Path) -> dict[str, Any]:
    """Store a small layer, if it is not there. Raises OutputError."""
    sha256 = hashlib.sha256(content).hexdigest()
    place = blob_place(blobs, sha256)
    if is_there(place):
        delete_second_name(partial_path(place), place)
    else:
        with atomic_write(place) as file:
            file.write(content)
    return layer(kind, sha256, len(content))


def delete_second_name(partial: Path, path: Path) -> None:
    """Delete the temporary name that a file still has if its writer was killed at the end."""
    if is_same(partial, path):
        partial.unlink(missing_ok=True)


def layer(kind: str, sha256: str, nbytes: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": nbytes}


def publish_manifest(name: OllamaName, content: bytes, home: Path, if_taken: str) -> None:
    """Write the manifest and give it its name. Raises OutputError if the name is taken."""
    root = home / "manifests"
    path = root / name.place
    make_folder(path.parent, hint=NOT_WRITABLE)
    partial = root / PARTIAL
    with (
        explained(path, hint=NOT_WRITABLE),
        open_locked(partial, path, hint="try again in a moment") as file,
    ):
        try:
            file.write(content)
            file.flush()
            refuse_taken(name, home, if_taken)
            take_name(partial, path, if_taken)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def take_name(partial: Path, path: Path, hint: str) -> None:
    """Give a manifest its name. Raises OutputError, with the hint, if it was taken meanwhile."""
    try:
        link_new(partial, path)
    except OutputError as error:
        raise OutputError(error.message, hint=hint) from error


def as_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def home_to_write(env: Mapping[str, str]) -> Path:
    """The store to which a model is given: the first. Raises OutputError without one."""
    named, homes = env.get("OLLAMA_MODELS"), ollama_homes(env)
    if named and not is_there(Path(named)):
        raise OutputError(
            f"OLLAMA_MODELS names `{named}`, which is not there", hint="is its disk there?"
        )
    if not homes:
        raise OutputError(
            "Ollama has no store on this machine",
            hint="start Ollama once, or name its folder of models with OLLAMA_MODELS",
        )
    return homes[0]
