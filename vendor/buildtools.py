"""Finds cmake and ninja on PATH if they are new enough, else installs pinned ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .recipe import BuildTool, Recipe
from .report import BuildError, BuildEvent, Report

# The programs inside the wheels of cmake and ninja, rather than their Python wrappers.
PROGRAMS = ("{name}/data/bin/{name}", "bin/{name}")


@dataclass(frozen=True, slots=True)
class Program:
    """A program on disk that has answered `--version`."""

    path: Path
    version: str


def find_buildtools(
    recipe: Recipe, cache: Path, *, env: Mapping[str, str], report: Report
) -> dict[str, Program]:
    """Return each build tool of the recipe by name, installed below `cache` if PATH has none.

    Raises BuildError.
    """
    return {
        tool.name: _on_path(tool, env) or _installed(tool, cache, env=env, report=report)
        for tool in recipe.buildtools
    }


def _on_path(tool: BuildTool, env: Mapping[str, str]) -> Program | None:
    """Return the tool on PATH or in this Python's environment, if it is new enough."""
    folders = [*env.get("PATH", "").split(os.pathsep), str(Path(sys.executable).parent)]
    for folder in folders:
        found = folder and shutil.which(tool.name, path=folder)
        program = _program(Path(found), env) if found else None
        if program and _numbers(program.version) >= _numbers(tool.minimum):
            return program
    return None


def _installed(tool: BuildTool, cache: Path, *, env: Mapping[str, str], report: Report) -> Program:
    """Return the pinned tool below `cache`, installed from the package index if it is missing."""
    folder = cache / "buildtools" / f"{tool.name}-{tool.pin}"
    if not (program := next(_programs(tool, folder, env), None)):
        report(BuildEvent("tools", f"installing {tool.name} {tool.pin} from the package index"))
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        try:
            _pip_install(tool, partial, env)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        program = next(_programs(tool, folder, env), None)
    if program is None:
        raise BuildError(
            f"{tool.name} {tool.pin} was installed in `{folder}` but does not run",
            hint=f"install {tool.name} {tool.minimum} or newer yourself, so that it is on PATH",
        )
    return program


def _pip_install(tool: BuildTool, target: Path, env: Mapping[str, str]) -> None:
    """Install the pinned wheel into `target` with pip, or with uv if there is no pip."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    uv = ["uv", "pip", "install", "--python", sys.executable]
    quiet = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target)]
    errors = []
    for installer in (pip, uv):
        argv = [*installer, *quiet, f"{tool.name}=={tool.pin}"]
        try:
            subprocess.run(argv, env=dict(env), capture_output=True, text=True, check=True)
        except FileNotFoundError as error:
            errors.append(str(error))
        except subprocess.CalledProcessError as error:
            errors.append(error.stderr.strip())
        else:
            return
    raise BuildError(
        f"{tool.name} is not on PATH (or older than {tool.minimum}), and pip could not "
        f"install it:\n  {errors[0]}",
        hint=f"install {tool.name} {tool.minimum} or newer, or see to the package index",
    )


def _programs(tool: BuildTool, folder: Path, env: Mapping[str, str]) -> Iterator[Program]:
    for pattern in PROGRAMS:
        path = folder / pattern.format(name=tool.name)
        if path.is_file() and (program := _program(path, env)):
            yield program


def _program(path: Path, env: Mapping[str, str]) -> Program | None:
    """Return `path` with its version, or None if it does not run."""
    argv = [str(path), "--version"]
    try:
        answer = subprocess.run(
            argv, env=dict(env), capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\d+(\.\d+)+", answer.stdout)
    return Program(path, version[0]) if version else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))
