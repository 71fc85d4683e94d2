"""Reads the manifests of Ollama's models strictly.

A manifest is a small JSON file that lists the blobs of a model by kind and hash. Ollama of 2026
may also keep lists of manifests, one for each engine (manifest/manifest.go of
https://github.com/ollama/ollama).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import describe_missing, is_there, read_json_object
from exporter.core.errors import ModelError, UnsupportedError
from exporter.stores.other_model import OtherFile

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.ollama.manifest.list.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
KIND = "application/vnd.ollama.image."
SCHEMA = 2
DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
LARGEST = 8 << 20  # bytes; one with a thousand tensors has some 200 kB
ENGINES = ("llamacpp", "ollama", "")
"""Engines whose manifests hold GGUFs, the best first; "" if a manifest names none."""
NEWER = "decant knows Ollama's layout of 2026; `decant update-check` says how to update decant"


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of a model."""

    kind: str
    """Its media type; without the usual beginning: model, adapter, template, …"""
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The blobs of a model."""

    path: Path
    blobs: Path
    """The folder of the blobs."""
    layers: tuple[Layer, ...]
    config: Layer | None

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def of(self, kind: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == kind)

    def place(self, layer: Layer) -> Path:
        return blob_place(self.blobs, layer.sha256)

    def file(self, layer: Layer) -> OtherFile:
        """A layer's blob. Raises ModelError if it is missing or has another size."""
        path = self.place(layer)
        if not is_there(path):
            unfinished = any(self.blobs.glob(f"{path.name}-partial*"))
            raise ModelError(
                f"the blob `{path}`, which `{self.path}` names, {describe_missing(path)}"
                + (": its download is not finished" if unfinished else ""),
                hint="`ollama pull` it again",
            )
        if not path.is_file() or path.stat().st_size != layer.nbytes:
            raise ModelError(
                f"the blob `{path}` does not have the {layer.nbytes} bytes that `{self.path}`"
                " states",
                hint="`ollama pull` it again",
            )
        return OtherFile(path, layer.sha256)


def blob_place(blobs: Path, sha256: str) -> Path:
    return blobs / f"sha256-{sha256}"


def read_manifest(path: Path, home: Path) -> Manifest:
    """Read a manifest in the store `home`; of a list, the one whose weights are a GGUF.

    Raises ModelError for anything that is not one, UnsupportedError for a newer layout.
    """
    blobs = home / "blobs"
    refuse_elsewhere(path, home)
    value = read_small(path)
    if value.get("mediaType") == LIST:
        value = chosen(value, path, blobs)
    refuse_newer(value, path)
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise ModelError(f"`{path}` lists no layers", hint="`ollama pull` it again")
    config = value.get("config")
    return Manifest(
        path,
        blobs,
        tuple(layer_of(layer, path) for layer in layers),
        layer_of(config, path) if isinstance(config, dict) and config.get("digest") else None,
    )


def refuse_elsewhere(path: Path, home: Path) -> None:
    """Raise ModelError for a link that leads out of the store."""
    roots = [home, home / "blobs", *(home / root for root in ROOTS)]
    real = path.resolve()
    if path.is_symlink() and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise ModelError(
            f"`{path}` is a link to `{real}`, which is not in Ollama's store",
            hint="`ollama pull` the model again",
        )


ROOTS = ("manifests-v2", "manifests")
"""Folders of manifests; a name in the first takes precedence."""


def read_small(path: Path) -> dict[str, Any]:  # any JSON
    """The JSON object in a file. Raises ModelError for anything else, or a huge file."""
    if is_there(path) and path.is_file() and (size := path.stat().st_size) > LARGEST:
        raise ModelError(
            f"`{path}` has {size} bytes, and a manifest has at most {LARGEST}",
            hint="it is no manifest of Ollama's; `ollama pull` the model again",
        )
    if is_there(path) and not path.is_file():
        raise ModelError(f"`{path}` is not a file", hint="`ollama pull` the model again")
    return read_json_object(path, error=ModelError, hint="`ollama pull` the model again")


def refuse_newer(value: dict[str, Any], path: Path) -> None:
    """Raise UnsupportedError for a manifest of another kind or version."""
    kind, version = value.get("mediaType", MANIFEST), value.get("schemaVersion", SCHEMA)
    if kind not in (MANIFEST, "") or version != SCHEMA:
        what = f"the kind {kind!r}" if kind not in (MANIFEST, "") else f"version {version!r}"
        raise UnsupportedError(f"`{path}` is a manifest of {what[:120]}", hint=NEWER)


def chosen(value: dict[str, Any], path: Path, blobs: Path) -> dict[str, Any]:
    """The manifest in a list whose weights are a GGUF.

    Raises UnsupportedError without one, ModelError for a damaged one.
    """
    entries = value.get("manifests")
    entries = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    for engine in ENGINES:
        for entry in entries:
            if str(entry.get("runner", "")).lower() != engine:
                continue
            if entry.get("format", "gguf") == "gguf" and entry.get("mediaType") != LIST:
                return entry if "layers" in entry else referred(entry, path, blobs)
    engines = ", ".join(str(entry.get("runner")) for entry in entries[:8]) or "none"
    raise UnsupportedError(
        f"`{path}` has no manifest with a GGUF; its engines: {engines}",
        hint="decant runs GGUFs: pull another tag of the model",
    )


def referred(entry: dict[str, Any], path: Path, blobs: Path) -> dict[str, Any]:
    """The manifest to which a list's entry refers by its hash. Raises ModelError."""
    sha256 = sha256_of(entry, path)
    blob = blob_place(blobs, sha256)
    value = read_small(blob)
    if hashlib.sha256(blob.read_bytes()).hexdigest() != sha256:
        raise ModelError(f"`{blob}` is damaged: it has another hash", hint="`ollama pull` it again")
    return value


def layer_of(value: object, path: Path) -> Layer:
    """One entry of a manifest. Raises ModelError for anything else."""
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` has a layer that is no object", hint="`ollama pull` it again")
    kind, size = value.get("mediaType"), value.get("size")
    if not isinstance(kind, str) or type(size) is not int or size < 0:
        raise ModelError(
            f"`{path}` has a layer without a kind or a size", hint="`ollama pull` it again"
        )
    return Layer(kind.removeprefix(KIND), sha256_of(value, path), size)


def sha256_of(value: dict[str, Any], path: Path) -> str:
    """The hash in a digest. Raises ModelError for a text that is none, such as a path."""
    digest = value.get("digest")
    found = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise ModelError(
            f"`{path}` names the blob {str(digest)[:80]!r}, which is no sha256",
            hint="`ollama pull` the model again",
        )
    return found[1].lower()
