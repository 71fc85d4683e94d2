"""Configures with cmake, compiles with ninja, and reports their progress."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .buildtools import Program
from .cuda import Cuda, checked_toolkit, cuda_options
from .host import Compilers, find_nvcc
from .process import run_logged
from .recipe import Recipe
from .report import BuildEvent, Report

STEP = re.compile(r"\[(\d+)/(\d+)\]")  # NINJA_STATUS below


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """The complete settings of one compilation."""

    recipe: Recipe
    backend: str
    compilers: Compilers
    cmake: Program
    ninja: Program
    flags: tuple[str, ...]
    """Extra compiler flags for C and C++."""
    jobs: int
    cuda: Cuda | None = None
    """The GPUs to compile for, if the backend is cuda."""


def compile_tree(
    plan: CompilePlan,
    source: Path,
    build: Path,
    log: Path,
    *,
    env: Mapping[str, str],
    report: Report,
    pass_fds: Sequence[int] = (),
) -> None:
    """Build the targets in `build`, continuing from the objects of an interrupted run.

    ninja and its compilers inherit `pass_fds` and keep them open. Raises BuildError.
    """
    env = _environment(plan, env)
    argv = _configure_argv(plan, source, build, env)
    _start_over_if_changed(argv, plan, build)
    report(BuildEvent("configure", f"configuring for {plan.backend} with {plan.compilers.version}"))
    run_logged(argv, log, env=env, what="configuring llama.cpp", pass_fds=pass_fds)

    def on_line(line: str) -> None:
        if step := STEP.match(line):
            report(BuildEvent("compile", "compiling llama.cpp", int(step[1]), int(step[2])))

    targets = [*plan.recipe.libraries, *plan.recipe.tools]
    argv = [str(plan.ninja.path), "-C", str(build), "-j", str(plan.jobs), *targets]
    what = "compiling llama.cpp"
    run_logged(argv, log, env=env, what=what, on_line=on_line, pass_fds=pass_fds)


def _environment(plan: CompilePlan, env: Mapping[str, str]) -> dict[str, str]:
    compilers = {"CC": plan.compilers.cc, "CXX": plan.compilers.cxx}
    if plan.backend == "cuda" and not env.get("CUDACXX") and (nvcc := find_nvcc(env)):
        compilers["CUDACXX"] = nvcc  # cmake itself searches only PATH
    return {**env, **compilers, "NINJA_STATUS": "[%f/%t] "}


def _configure_argv(
    plan: CompilePlan, source: Path, build: Path, env: Mapping[str, str]
) -> list[str]:
    options = plan.recipe.options(plan.backend)
    if plan.cuda is not None:
        options |= cuda_options(checked_toolkit(find_nvcc(env)), plan.cuda, env)
    if plan.flags:
        # These options override CFLAGS and CXXFLAGS, so the values of those go first.
        for option, name in (("CMAKE_C_FLAGS", "CFLAGS"), ("CMAKE_CXX_FLAGS", "CXXFLAGS")):
            options[option] = " ".join([env.get(name, ""), *plan.flags]).strip()
    return [
        str(plan.cmake.path),
        *("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={plan.ninja.path}"),
        *("-S", str(source / plan.recipe.cmake_root), "-B", str(build)),
        *(f"-D{name}={value}" for name, value in options.items()),
    ]


def _start_over_if_changed(argv: Sequence[str], plan: CompilePlan, build: Path) -> None:
    """Empty `build` unless the same command with the same compilers configured it.

    CMake keeps the compiler of its first run whatever CC says later, so a new run is not enough.
    """
    stamp = build / "decant-configured.json"
    wanted = json.dumps([list(argv), plan.compilers.cc, plan.compilers.cxx, plan.compilers.version])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    partial = stamp.with_suffix(".partial")
    partial.write_text(wanted, encoding="utf-8")
    partial.replace(stamp)
