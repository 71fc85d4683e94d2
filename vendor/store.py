"""Finished builds on disk: their folders, their keys, and the search for them.

Commands of decant import this to find the build, so it imports only modules that load fast.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cuda import Cuda, suits
from .host import Host, choose_backend, read_host
from .recipe import Recipe
from .report import BuildError

SCHEMA = 1  # of build.json and of the folder's layout; part of the key


@dataclass(frozen=True, slots=True)
class Build:
    """A finished build on disk."""

    dir: Path
    info: dict[str, Any]  # Any: build.json as parsed
    """The content of `build.json`."""

    def tool(self, name: str) -> Path:
        """Return the path of the program called `name`. Raises BuildError."""
        return self._path("tools", name)

    def library(self, name: str) -> Path:
        """Return the shared library called `name`, without `lib` and suffix, such as `ggml-base`.

        Raises BuildError.
        """
        return self._path("libraries", name)

    @property
    def bin(self) -> Path:
        """The folder of tools and libraries, the value for LLAMA_CPP_LIB_PATH."""
        return self.dir / "bin"

    @property
    def src(self) -> Path:
        """The folder of llama.cpp's Python: `conversion`, `gguf-py`, `convert_hf_to_gguf.py`."""
        return self.dir / "src"

    @property
    def python(self) -> Path:
        """The folder to add to sys.path for `import llama_cpp`."""
        return self.dir / "python"

    def _path(self, kind: str, name: str) -> Path:
        paths: dict[str, str] = self.info[kind]
        if name not in paths:
            raise BuildError(f"the build `{self.dir}` has no {name!r} among its {kind}")
        return self.dir / paths[name]


def cache_root(env: Mapping[str, str]) -> Path:
    """Return decant's cache folder, whose files can all be made again."""
    if named := env.get("DECANT_CACHE"):
        return Path(named).expanduser().absolute()
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "decant"
    xdg = Path(env.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else home / ".cache") / "decant"


def build_key(recipe: Recipe, backend: str, host: Host) -> str:
    """Return a build's key, a short hash of its inputs; a new compiler version does not
    change it.
    """
    facts = [
        SCHEMA,
        recipe.commit,
        recipe.sha256,
        backend,
        [[patch.file, patch.find, patch.put] for patch in recipe.patches],
        sorted(recipe.options(backend).items()),
        [*recipe.tools, *recipe.libraries],
        sorted(recipe.keep.items()),
        host.system,
        host.cpu.identity,
    ]
    if backend == "cuda":
        facts.append(asdict(host.cuda))
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return f"{recipe.commit[:9]}-{backend}-{digest[:10]}"


def find(recipe: Recipe, *, env: Mapping[str, str], host: Host | None = None) -> Build | None:
    """Return the finished build for this machine, or None; starts and writes nothing."""
    host = host or read_host(env)
    backend = choose_backend(recipe, env, host).backend
    there = finished(folder(recipe, backend, env, host))
    return there or (made_elsewhere(recipe, env, host) if backend == "cuda" else None)


def made_elsewhere(recipe: Recipe, env: Mapping[str, str], host: Host) -> Build | None:
    """Return a CUDA build that was made without this machine's GPU or toolkit and runs on it."""
    for place in sorted((cache_root(env) / "llama.cpp").glob(f"{recipe.commit[:9]}-cuda-*")):
        build = finished(place)
        facts = build.info.get("cuda") if build else None
        if not facts:
            continue
        made = Cuda(facts["version"], facts["architectures"], tuple(facts["gpus"]))
        same = build_key(recipe, "cuda", replace(host, cuda=made)) == place.name
        if same and suits(made, host.cuda):
            return build
    return None


def folder(recipe: Recipe, backend: str, env: Mapping[str, str], host: Host) -> Path:
    """Return the folder of the build for `backend`, whether or not it exists."""
    return cache_root(env) / "llama.cpp" / build_key(recipe, backend, host)


def finished(folder: Path) -> Build | None:
    """Return the build in `folder`, if it has a build.json of this schema."""
    try:
        info = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Build(folder, info) if info.get("schema") == SCHEMA else None
