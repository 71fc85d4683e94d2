from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import Mini
from vendor.buildtools import find_buildtools
from vendor.cmake import CompilePlan, compile_tree
from vendor.host import find_compilers
from vendor.probe import WITHOUT_AMX
from vendor.report import silent
from vendor.tree import unpack


@pytest.fixture
def plan(mini: Mini) -> CompilePlan:
    return CompilePlan(
        recipe=mini.recipe,
        backend="cpu",
        compilers=find_compilers(os.environ, system="Linux"),
        **find_buildtools(mini.recipe, Path("/nowhere"), env=os.environ, report=silent),
        flags=(),
        jobs=2,
    )


@pytest.fixture
def source(mini: Mini, tmp_path: Path) -> Path:
    unpack(mini.sdist, mini.recipe, tmp_path / "source", report=silent)
    return tmp_path / "source"


def compiled(plan: CompilePlan, source: Path, env: dict[str, str]) -> Path:
    """The folder a compilation of `plan` fills."""
    build = source.with_name("build")
    compile_tree(plan, source, build, source.with_name("log"), env=env, report=silent)
    return build


def test_flags_against_amx_come_after_the_users_own(mini: Mini, plan: CompilePlan, source: Path):
    # A spelling every compiler knows stands in for flags that only x86 has.
    plan = replace(plan, flags=("-DNO_AMX=1",))
    build = compiled(plan, source, {**mini.env, "CFLAGS": "-DMINE=1"})
    assert "-DMINE=1 -DNO_AMX=1" in (build / "build.ninja").read_text()
    assert all(flag.startswith("-mno-amx-") for flag in WITHOUT_AMX)


def test_same_plan_goes_on_where_it_stopped(mini: Mini, plan: CompilePlan, source: Path):
    stray = compiled(plan, source, mini.env) / "stray"
    stray.touch()
    compiled(plan, source, mini.env)
    assert stray.exists()


@pytest.mark.lasting
def test_changed_plan_starts_over(mini: Mini, plan: CompilePlan, source: Path):
    stray = compiled(plan, source, mini.env) / "stray"
    stray.touch()
    newer = replace(plan.compilers, version="c++ 99.0")
    compiled(replace(plan, compilers=newer), source, mini.env)
    assert not stray.exists()
