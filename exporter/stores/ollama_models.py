"""The models in Ollama's store; `ollama:NAME` names one as a base, `import --from ollama` takes it.

Nothing in the store is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.errors import DecantError, UnsupportedError
from exporter.stores.ollama_manifest import ROOTS, Layer, Manifest, read_manifest
from exporter.stores.ollama_names import TAG, OllamaName, name_at, parse_ollama_name
from exporter.stores.other_model import OtherModel, no_such_model

PREFIX = "ollama:"
SERVICE = Path("/usr/share/ollama/.ollama/models")  # used by Linux packages
NO_STORE = "decant looks for its models in OLLAMA_MODELS and in ~/.ollama/models"
CLOUD = "it runs in Ollama's cloud, and no weights are on this machine"
TENSORS = "its weights are safetensors, for Ollama's own engine, and no GGUF"


@dataclass(frozen=True, slots=True)
class Named:
    """A manifest by the name of its model."""

    name: OllamaName
    path: Path
    home: Path


def is_ollama(text: str) -> bool:
    return text.startswith(PREFIX)


def ollama_gguf(text: str, env: Mapping[str, str] | None = None) -> Path:
    """The GGUF of a model that Ollama has pulled or created.

    Raises ModelError, with the known names, for any other; UnsupportedError for one without a GGUF.
    """
    named = find_named(text.removeprefix(PREFIX), os.environ if env is None else env)
    manifest = read_manifest(named.path, named.home)
    return manifest.file(gguf_layer_of(manifest, named)).path


def ollama_homes(env: Mapping[str, str]) -> list[Path]:
    """The folders in which Ollama may keep models, those of this user first."""
    named = [Path(env["OLLAMA_MODELS"])] if env.get("OLLAMA_MODELS") else []
    homes = [*named, Path.home() / ".ollama" / "models", SERVICE]
    return [home for home in dict.fromkeys(homes) if is_there(home)]


def all_named(home: Path) -> Iterator[Named]:
    """The manifests of a store, each name once; a newer layout takes precedence."""
    seen: set[str] = set()
    for root in ROOTS:
        try:
            paths = sorted((home / root).glob("*/*/*/*"))
        except OSError:  # not readable
            continue
        for path in paths:
            name = name_at(path.relative_to(home / root))
            if name and name.folded not in seen and not path.is_dir() and is_there(path):
                seen.add(name.folded)
                yield Named(name, path, home)


def find_named(text: str, env: Mapping[str, str]) -> Named:
    """The manifest of a name. Raises ModelError, with the nearest names, without one."""
    wanted = parse_ollama_name(text)
    found = [named for home in ollama_homes(env) for named in all_named(home)]
    for named in found:
        if named.name.folded == wanted.folded:
            return named
    known = [str(named.name) for named in found]
    names = [name.removesuffix(f":{TAG}") for name in known]
    raise no_such_model("ollama", text, names, NO_STORE + unreadable(SERVICE.parents[1]))


def unreadable(folder: Path) -> str:
    """The end of a hint if a folder is there and this user may not read it, else nothing."""
    is_closed = folder.exists() and not os.access(folder, os.R_OK | os.X_OK)
    return f"; `{folder}` is another user's, and you may not read it" if is_closed else ""


def gguf_layer_of(manifest: Manifest, named: Named) -> Layer:
    """The layer of the model itself. Raises UnsupportedError without exactly one."""
    if reason := unfit(manifest):
        raise UnsupportedError(
            f"{str(named.name)!r} of Ollama's cannot be used: {reason}",
            hint="`ollama pull` another tag of the model",
        )
    return manifest.of("model")[0]


def unfit(manifest: Manifest) -> str:
    """The reason that a model cannot be used as a GGUF; empty if it can."""
    count = len(manifest.of("model"))
    if count == 1:
        return ""
    if manifest.of("tensor"):
        return TENSORS
    return f"it consists of {count} GGUFs, and one is needed" if count else CLOUD


def ollama_models(env: Mapping[str, str]) -> list[OtherModel]:
    """All models, with the reason for those that cannot be imported."""
    found: dict[str, OtherModel] = {}
    hidden = []
    for home in ollama_homes(env):
        for named in all_named(home):
            if named.name.folded in found:
                why = (
                    f"another store has that name; that of `{home}`: OLLAMA_MODELS={home} decant …"
                )
                hidden.append(OtherModel("ollama", str(named.name), problem=why))
            else:
                found[named.name.folded] = described(named)
    return [*found.values(), *hidden]


def described(named: Named) -> OtherModel:
    """A model for a list; only its manifest is read."""
    try:
        manifest = read_manifest(named.path, named.home)
        if reason := unfit(manifest):
            return OtherModel("ollama", str(named.name), manifest.nbytes, problem=reason)
        return opened(named, manifest)
    except DecantError as error:
        return OtherModel("ollama", str(named.name), problem=error.message)


def opened(named: Named, manifest: Manifest) -> OtherModel:
    """A model with its files. Raises ModelError and UnsupportedError if it has no whole GGUF."""
    model = manifest.file(gguf_layer_of(manifest, named))
    return OtherModel(
        "ollama",
        str(named.name),
        manifest.nbytes,
        (model,),
        stem_of(named.name),
        projectors=tuple(map(manifest.file, manifest.of("projector"))),
        adapters=tuple(map(manifest.file, manifest.of("adapter"))),
    )


def stem_of(name: OllamaName) -> str:
    """The name for decant's store: the model's, and its tag unless that is the usual one."""
    return name.model if name.tag == TAG else f"{name.model}-{name.tag}"
