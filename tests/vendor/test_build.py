from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import HOST, Events, FakeIndex, Mini, make_mini, no_smoke
from tests.vendor.conftest import Built
from vendor.build import Build, build, build_key, cache_root, find
from vendor.host import Cpu
from vendor.recipe import read_recipe
from vendor.report import BuildError

CHECKOUT = Path(__file__).parents[2]
BROKEN = {"vendor/llama.cpp/base.c": "int answer(void) { return fortytwo; }\n"}


def make(mini: Mini, report=None, *, smoke=no_smoke, force=False) -> Build:
    return build(
        mini.recipe, env=mini.env, report=report or Events(), smoke=smoke, force=force, host=HOST
    )


def run(tool: Path) -> int:
    return subprocess.run([tool], env={}, check=False).returncode


def folders(mini: Mini) -> set[str]:
    """What lies beside the builds, less the locks."""
    return {path.name for path in _builds(mini).iterdir() if path.suffix != ".lock"}


def _builds(mini: Mini) -> Path:
    return Path(mini.env["DECANT_CACHE"]) / "llama.cpp"


def test_finished_build_holds_what_the_recipe_keeps_and_nothing_else(built: Built):
    top = built.build.dir
    assert {path.name for path in top.iterdir()} == {
        *("bin", "src", "python", "LICENSE", "build.json", "build.log")
    }
    assert (built.build.src / "conversion" / "base.py").read_text() == "NAME = 'mini'\n"
    assert (built.build.python / "llama_cpp" / "__init__.py").exists()
    assert folders(built.mini) == {top.name}


def test_build_json_says_how_it_was_built(built: Built):
    info = json.loads((built.build.dir / "build.json").read_text())
    assert info == built.build.info
    assert (info["commit"], info["backend"], info["key"]) == (
        *("abc1234", "cpu"),
        built.build.dir.name,
    )
    assert info["options"]["CMAKE_BUILD_TYPE"] == "Release"
    assert info["cpu"] == {"machine": "x86_64", "model": "Test CPU"}
    assert info["smoke"] == {"tokens": []}
    assert info["amx"] == {"verdict": "not applicable", "flags": []}


def test_tools_and_libraries_are_found_by_name(built: Built):
    assert run(built.build.tool("llama-server")) == 42
    assert built.build.library("ggml-base").parent == built.build.bin
    with pytest.raises(BuildError, match="no 'llama-cli' among its tools"):
        built.build.tool("llama-cli")


def test_build_runs_wherever_it_is_moved(built: Built, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(built.build.bin, moved, symlinks=True)
    hidden = built.build.dir.rename(built.build.dir.with_name("hidden"))
    try:
        assert run(moved / "llama-server") == 42
    finally:
        hidden.rename(built.build.dir)


def test_second_build_does_no_work(built: Built):
    events = Events()
    again = build(built.mini.recipe, env=built.mini.env, report=events, host=HOST)
    assert again == built.build
    assert events.seen == []


def test_find_needs_no_program_and_writes_nothing(built: Built, tmp_path: Path):
    env = {**built.mini.env, "PATH": ""}
    assert find(built.mini.recipe, env=env, host=HOST) == built.build
    empty = tmp_path / "cache"
    assert find(built.mini.recipe, env={**env, "DECANT_CACHE": str(empty)}, host=HOST) is None
    assert not empty.exists()


def test_build_from_the_package_index(mini: Mini, index: FakeIndex):
    events, seen = Events(), []

    def looks(build: Build, env: Mapping[str, str]) -> dict[str, object]:
        seen.append((run(build.tool("llama-server")), env["DECANT_CACHE"]))
        return {}

    assert run(make(mini, events, smoke=looks).tool("llama-server")) == 42
    assert seen == [(42, mini.env["DECANT_CACHE"])]
    assert {"fetch", "verify", "unpack", "configure", "compile", "smoke", "done"} <= events.stages
    last = [event for event in events.seen if event.stage == "compile"][-1]
    assert last.done == last.total > 0


def test_failing_compile_shows_the_last_lines_and_keeps_the_log(tmp_path: Path):
    mini = make_mini(tmp_path / "mini", BROKEN)
    with pytest.raises(BuildError, match="fortytwo") as caught:
        make(mini)
    assert "ninja" in caught.value.message
    log = Path(caught.value.hint.split("`")[1])
    assert "$ " in log.read_text()
    assert "fortytwo" in log.read_text()
    assert find(mini.recipe, env=mini.env, host=HOST) is None


@pytest.mark.lasting
def test_failing_configuration_names_cmake(tmp_path: Path):
    changes = {"vendor/llama.cpp/CMakeLists.txt": "message(FATAL_ERROR no-such-luck)\n"}
    with pytest.raises(BuildError, match=r"(?s)cmake.*no-such-luck"):
        make(make_mini(tmp_path / "mini", changes))


def test_missing_compiler_is_told_with_a_remedy(mini: Mini, tmp_path: Path):
    mini.env["PATH"] = str(tmp_path)
    with pytest.raises(BuildError, match=r"needs a C and a C\+\+ compiler") as caught:
        make(mini)
    assert "CXX" in caught.value.hint


@pytest.mark.lasting
def test_failed_smoke_test_publishes_nothing_and_costs_no_second_compilation(mini: Mini):
    def fails(build: Build, env: Mapping[str, str]) -> dict[str, object]:
        raise BuildError(f"it smokes in {build.dir.name}")

    with pytest.raises(BuildError, match="it smokes"):
        make(mini, smoke=fails)
    assert all(name.endswith(".partial") for name in folders(mini))
    events = Events()
    assert run(make(mini, events).tool("llama-server")) == 42
    assert {"unpack", "compile"} & events.stages == set()


@pytest.mark.faults
def test_force_replaces_a_finished_build(mini: Mini):
    stray = make(mini).dir / "stray"
    stray.touch()
    assert run(make(mini, force=True).tool("llama-server")) == 42
    assert not stray.exists()
    assert len(folders(mini)) == 1


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["unpack", "compile", "smoke"])
def test_killed_build_starts_again_cleanly(mini: Mini, stage: str):
    program = f"""
import os, signal
from pathlib import Path
from tests.support.mini_sdist import Events, HOST, no_smoke
from vendor.build import build
from vendor.recipe import read_recipe
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
recipe = read_recipe(Path({str(mini.sdist.with_name("mini.toml"))!r}))
build(recipe, env=os.environ, report=Events(on={{{stage!r}: die}}), smoke=no_smoke, host=HOST)
"""
    argv = [sys.executable, "-c", program]
    killed = subprocess.run(argv, cwd=CHECKOUT, env=mini.env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert find(mini.recipe, env=mini.env, host=HOST) is None
    assert run(make(mini).tool("llama-server")) == 42
    assert len(folders(mini)) == 1


def test_interrupted_build_leaves_no_ninja(tmp_path: Path):
    # The compiler of base.c reads this pipe for as long as the test holds it open.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    mini = make_mini(tmp_path / "mini", {"vendor/llama.cpp/base.c": f'#include "{pipe}"\n'})
    mini.env["CMAKE_BUILD_PARALLEL_LEVEL"] = "2"
    held = []

    def interrupt() -> None:
        held.append(os.open(pipe, os.O_WRONLY))  # returns when the compiler is at work
        assert _mentioning(str(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(mini, Events(on={"compile": interrupt}))
    assert not _mentioning(str(tmp_path))
    os.close(held[0])


def _mentioning(text: str) -> list[str]:
    """The command lines of running processes that contain `text`."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if text in line]


@pytest.mark.lasting
def test_of_two_builds_at_once_one_waits_for_the_other(mini: Mini):
    waiting = threading.Event()
    second = Events(on={"wait": waiting.set})
    results = []
    thread = threading.Thread(target=lambda: results.append(make(mini, second)))

    def start_second() -> None:
        thread.start()
        assert waiting.wait(30)

    first = Events(on={"configure": start_second})
    built = make(mini, first)
    thread.join(30)
    assert results == [built]
    assert second.stages == {"wait"}


def test_key_stays_when_nothing_changes():
    assert build_key(read_recipe(), "cpu", HOST) == build_key(read_recipe(), "cpu", HOST)


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "fffffff"},
        {"sha256": "0" * 64},
        {"cmake": {"CMAKE_BUILD_TYPE": "Debug"}},
        {"tools": ("llama-server",)},
        {"keep": {}},
        {"patches": ()},
    ],
)
def test_key_depends_on_the_recipe(change: dict[str, object]):
    recipe = read_recipe()
    assert build_key(replace(recipe, **change), "cpu", HOST) != build_key(recipe, "cpu", HOST)


def test_key_depends_on_the_backend_and_the_cpu():
    recipe = read_recipe()
    hosts = [
        HOST,
        replace(HOST, cpu=Cpu("aarch64", "Test CPU", HOST.cpu.flags)),
        replace(HOST, cpu=Cpu("x86_64", "Test CPU", HOST.cpu.flags | {"avx512f"})),
        replace(HOST, cpu=Cpu("arm64", "Apple M1", frozenset())),
        replace(HOST, cpu=Cpu("arm64", "Apple M2", frozenset())),
    ]
    keys = {build_key(recipe, backend, host) for backend in ("cpu", "cuda") for host in hosts}
    assert len(keys) == 10


def test_key_does_not_depend_on_flags_that_only_a_kernel_names():
    renamed = replace(HOST, cpu=Cpu("x86_64", "Test CPU @ 3 GHz", HOST.cpu.flags | {"ibrs_new"}))
    assert build_key(read_recipe(), "cpu", renamed) == build_key(read_recipe(), "cpu", HOST)


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"DECANT_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/decant"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/decant"),
        ({"HOME": "/c"}, "/c/.cache/decant"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own place")
def test_cache_root_follows_the_environment(env: dict[str, str], folder: str):
    assert cache_root(env) == Path(folder)


def test_command_line_prints_error_and_hint():
    env = {**os.environ, "DECANT_BACKEND": "abacus"}
    argv = [sys.executable, "-m", "vendor.build"]
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: DECANT_BACKEND is 'abacus'")
    assert "\n\nhint: use one of: auto, cpu, cuda, metal, vulkan\n" in done.stderr


def test_damaged_recipe_is_named(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[source]\n")
    with pytest.raises(BuildError, match="is damaged: KeyError"):
        read_recipe(recipe)
