"""Reads Ollama's local store: `ollama:NAME[:TAG]` names the GGUF of a model in it.

A manifest lists the blobs of a model; one of them is a GGUF, named by its hash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from exporter.core.atomic_file import is_there, read_json_object
from exporter.core.errors import CheckpointError

PREFIX = "ollama:"
MODEL = "application/vnd.ollama.image.model"
REGISTRY, LIBRARY, TAG = "registry.ollama.ai", "library", "latest"
SERVICE = Path("/usr/share/ollama/.ollama/models")  # used by Linux packages
FEW = 8  # names shown in a hint


def is_ollama(text: str) -> bool:
    return text.startswith(PREFIX)


def ollama_gguf(text: str, env: Mapping[str, str] | None = None) -> Path:
    """The GGUF of a model that Ollama has pulled or created.

    Raises CheckpointError, with the known names, for any other.
    """
    name = text.removeprefix(PREFIX)
    homes = [home for home in model_homes(os.environ if env is None else env) if is_there(home)]
    for home in homes:
        manifest = home / "manifests" / place_in(name)
        if is_there(manifest):
            return blob_of(manifest, home)
    known = [name for home in homes for name in names_in(home)]
    raise CheckpointError(
        f"Ollama has no model {name!r} on this machine",
        hint=f"it has {', '.join(known[:FEW])}"
        if known
        else "decant looks for its models in OLLAMA_MODELS and in ~/.ollama/models",
    )


def model_homes(env: Mapping[str, str]) -> list[Path]:
    named = [Path(env["OLLAMA_MODELS"])] if env.get("OLLAMA_MODELS") else []
    return [*named, Path.home() / ".ollama" / "models", SERVICE]


def place_in(name: str) -> Path:
    """The path of a manifest for NAME, USER/NAME or HOST/USER/NAME with its tag."""
    path, _, tag = name.partition(":")
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    whole = [*[REGISTRY, LIBRARY][: 3 - len(parts)], *parts]
    return Path(*whole, Path(tag or TAG).name)


def blob_of(manifest: Path, home: Path) -> Path:
    """The blob of the model itself. Raises CheckpointError without exactly one."""
    hint = "ollama pull it again"
    content = read_json_object(manifest, error=CheckpointError, hint=hint)
    layers = content.get("layers")
    digests = [
        str(layer.get("digest"))
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict) and layer.get("mediaType") == MODEL
    ]
    if len(digests) != 1:
        raise CheckpointError(
            f"`{manifest}` names {len(digests)} models, and one is needed", hint=hint
        )
    blob = home / "blobs" / Path(digests[0].replace(":", "-")).name
    if not is_there(blob):
        raise CheckpointError(f"`{blob}`, which `{manifest}` names, is missing", hint=hint)
    return blob


def names_in(home: Path) -> list[str]:
    """The names of the stored models, as Ollama lists them."""
    root = home / "manifests"
    found = []
    for manifest in sorted(root.glob("*/*/*/*")):
        host, user, name, tag = manifest.relative_to(root).parts
        before = [] if host == REGISTRY and user == LIBRARY else [user]
        found.append("/".join([*([] if host == REGISTRY else [host]), *before, name]) + f":{tag}")
    return found
