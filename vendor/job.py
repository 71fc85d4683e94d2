"""Runs one build, from the sdist to the published folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .buildtools import find_buildtools
from .cmake import CompilePlan, compile_tree
from .cuda import EVERY, Cuda, checked_toolkit
from .fetch import fetch_sdist
from .host import BackendChoice, Host, count_jobs, expected_time, find_compilers
from .probe import AmxVerdict, probe_amx
from .recipe import Recipe
from .report import BuildEvent, Report
from .smoke import check_starts, smoke_test
from .store import SCHEMA, Build, cache_root
from .tree import collect, libraries, unpack

Smoke = Callable[[Build, Mapping[str, str]], dict[str, Any]]
"""Tests a build and returns a record for build.json, or raises a BuildError."""


@dataclass(frozen=True, slots=True)
class BuildJob:
    """One build, from the sdist to the published folder."""

    recipe: Recipe
    choice: BackendChoice
    host: Host
    folder: Path
    env: Mapping[str, str]
    report: Report
    smoke: Smoke
    lock: int
    """The lock's file descriptor, which ninja inherits."""

    @property
    def work(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def cuda(self) -> Cuda | None:
        """The toolkit and the GPUs to compile for, if the backend is cuda."""
        return self.host.cuda if self.choice.backend == "cuda" else None

    @property
    def log(self) -> Path:
        return self.work / "build.log"

    def run(self, *, from_scratch: bool) -> Build:
        """Return the published build; `from_scratch` deletes the objects of an earlier run."""
        began = time.monotonic()
        if from_scratch:
            shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        plan, amx = self.plan()
        source, compiled, staged = (self.work / name for name in ("source", "build", "finished"))
        cache = cache_root(self.env)
        sdist = fetch_sdist(self.recipe, cache, env=self.env, report=self.report)
        unpack(sdist, self.recipe, source, report=self.report)
        compile_tree(
            plan,
            source,
            compiled,
            self.log,
            env=self.env,
            report=self.report,
            pass_fds=[self.lock],
        )
        collect(compiled / "bin", source, staged, self.recipe)
        info = self.info(plan, amx, staged)
        self.report(BuildEvent("smoke", "decoding a few tokens with the new build"))
        info["smoke"] = self.smoke(Build(staged, info), self.env)
        info["seconds"] = round(time.monotonic() - began, 1)
        self.publish(staged, info)
        self.report(BuildEvent("done", f"llama.cpp is ready in `{self.folder}`"))
        return Build(self.folder, info)

    def plan(self) -> tuple[CompilePlan, AmxVerdict]:
        """Return the settings of the compilation, checked before the source is fetched."""
        backend, jobs = self.choice.backend, count_jobs(self.env)
        self.report(BuildEvent("tools", f"backend {backend}: {self.choice.reason}"))
        if self.cuda is not None:
            checked_toolkit(self.host.nvcc)
            if self.cuda.architectures == EVERY:
                self.report(
                    BuildEvent(
                        "tools",
                        "no GPU is here: compiling for every architecture; CUDAARCHS names fewer,"
                        " such as CUDAARCHS=90-real",
                    )
                )
        took = expected_time(backend, self.host.cuda, jobs)
        self.report(BuildEvent("tools", f"building takes {took}"))
        compilers = find_compilers(self.env, system=self.host.system)
        programs = find_buildtools(
            self.recipe, cache_root(self.env), env=self.env, report=self.report
        )
        amx = probe_amx(self.host.cpu, compilers, self.work, env=self.env)
        self.report(BuildEvent("probe", f"AMX: {amx.verdict}"))
        plan = CompilePlan(
            recipe=self.recipe,
            backend=backend,
            compilers=compilers,
            cmake=programs["cmake"],
            ninja=programs["ninja"],
            flags=amx.flags,
            jobs=jobs,
            cuda=self.cuda,
        )
        return plan, amx

    def info(self, plan: CompilePlan, amx: AmxVerdict, staged: Path) -> dict[str, Any]:
        """Return the content of build.json, except for the smoke test's result."""
        there = libraries(staged / "bin")
        return {
            "schema": SCHEMA,
            "key": self.folder.name,
            "llama_cpp_python": self.recipe.version,
            "commit": self.recipe.commit,
            "sdist_sha256": self.recipe.sha256,
            "mends": list(dict.fromkeys(patch.name for patch in self.recipe.patches)),
            "backend": self.choice.backend,
            "backend_reason": self.choice.reason,
            "options": self.recipe.options(self.choice.backend),
            "cuda": asdict(self.cuda) if self.cuda else None,
            "compiler": {
                "cc": plan.compilers.cc,
                "cxx": plan.compilers.cxx,
                "path": plan.compilers.path,
                "version": plan.compilers.version,
            },
            "cmake": plan.cmake.version,
            "ninja": plan.ninja.version,
            "amx": {"verdict": amx.verdict, "flags": list(amx.flags)},
            "cpu": {"machine": self.host.cpu.machine, "model": self.host.cpu.model},
            "tools": {name: f"bin/{name}" for name in self.recipe.tools},
            "libraries": {name: f"bin/{path.name}" for name, path in there.items()},
            "src": "src",
            "python": "python",
        }

    def publish(self, staged: Path, info: Mapping[str, Any]) -> None:
        """Make `staged` the finished build, and delete its work folder."""
        shutil.copy2(self.log, staged / "build.log")
        partial = staged / "build.json.partial"
        partial.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        partial.replace(staged / "build.json")
        old = self.folder.with_name(f"{self.folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        staged.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


def prove(build: Build, env: Mapping[str, str]) -> dict[str, Any]:
    """Start every tool, and decode with the server. Raises BuildError."""
    check_starts({name: build.tool(name) for name in build.info["tools"]}, env=env)
    return smoke_test(build.tool("llama-server"), env=env)
