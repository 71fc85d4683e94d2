"""Reads and checks the recipe `llama.cpp.toml`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .report import BuildError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPE_NAME = "llama.cpp.toml"


@dataclass(frozen=True, slots=True)
class BuildTool:
    """A program that the build needs and can install from the package index."""

    name: str
    minimum: str
    """The oldest version on PATH that is accepted."""
    pin: str
    """The version to install if PATH has none."""


@dataclass(frozen=True, slots=True)
class SourcePatch:
    """A replacement of one piece of the source before it is built."""

    name: str
    """The patch's name; several pieces can have the same one."""
    file: str
    """The file's path below the sdist's top folder."""
    find: str
    """The text to replace; it occurs in the file exactly once."""
    put: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """One pinned source and the settings to build it."""

    project: str
    """The project's name on the package index."""
    version: str
    sdist: str
    """The source distribution's file name; its top folder is this name without `.tar.gz`."""
    sha256: str
    nbytes: int
    commit: str
    """The llama.cpp commit inside the sdist."""
    cmake_root: str
    """The CMake project's folder, below the sdist's top folder."""
    patches: tuple[SourcePatch, ...]
    tools: tuple[str, ...]
    libraries: tuple[str, ...]
    cmake: Mapping[str, str]
    """CMake options of every backend."""
    backends: Mapping[str, Mapping[str, str]]
    """CMake options of each backend, added to `cmake`."""
    keep: Mapping[str, str]
    """Path in the finished build -> path below the sdist's top folder."""
    buildtools: tuple[BuildTool, ...]

    @property
    def top(self) -> str:
        """The sdist's top folder."""
        return self.sdist.removesuffix(".tar.gz")

    def options(self, backend: str) -> dict[str, str]:
        """Return all CMake options of a build for `backend`."""
        return {**self.cmake, **self.backends[backend]}


def read_recipe(path: Path | None = None) -> Recipe:
    """Return the recipe in `path`, or the one beside this file.

    Raises BuildError if it cannot be read or is damaged.
    """
    path = path or Path(__file__).with_name(RECIPE_NAME)
    try:
        return _recipe(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BuildError(f"the recipe `{path}` cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(
            f"the recipe `{path}` is damaged: {type(error).__name__}: {error}",
            hint="restore it from the repository, or install decant again",
        ) from error


@lru_cache(maxsize=2)
def _recipe(text: str) -> Recipe:
    table: Mapping[str, Any] = tomllib.loads(text)  # Any: parsed TOML, checked here
    source, build = table["source"], table["build"]
    if not re.fullmatch(r"[0-9a-f]{64}", source["sha256"]):
        raise ValueError(f"sha256 is {source['sha256']!r}, not 64 hex digits")
    return Recipe(
        project=source["project"],
        version=source["version"],
        sdist=source["sdist"],
        sha256=source["sha256"],
        nbytes=int(source["nbytes"]),
        commit=source["commit"],
        cmake_root=source["cmake_root"],
        patches=tuple(
            SourcePatch(name, piece["file"], piece["find"], piece["put"])
            for name, pieces in table.get("patch", {}).items()
            for piece in pieces
        ),
        tools=tuple(build["tools"]),
        libraries=tuple(build["libraries"]),
        cmake=dict(table["cmake"]),
        backends={name: dict(options) for name, options in table["backend"].items()},
        keep=dict(table["keep"]),
        buildtools=tuple(
            BuildTool(name, tool["minimum"], tool["pin"])
            for name, tool in table["buildtools"].items()
        ),
    )
