"""`decant serve` and `decant chat`, killed before each change of the folder of saved prompts."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.saved_prompts import SAVING, SUFFIX, checksum
from tests.runtime.gateway.conftest import MODELS, serving
from tests.support.killed_command import KilledCommand
from tests.support.long_prompts import LONG, asked, cached, end, text_of
from tests.support.processes import wait_until
from tests.support.terminal import chat

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.slow]
FEWEST = 8
"""Changes of one run: the folder, the temporary one, a link, two files' names, and their ends."""


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


def folder_of(data: Path) -> Path:
    return data / "decant" / "prompts"


def is_cached(answer: dict[str, Any]) -> bool:
    return cached(answer) > 60


def processes_of(folder: Path) -> list[str]:
    """The command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


def assert_private(folder: Path) -> None:
    """Nobody else can enter the folder, or a temporary one in it."""
    for place in (folder, *folder.glob(f"{SAVING}*")):
        assert not place.exists() or place.stat().st_mode & 0o777 == 0o700, place


def assert_whole(folder: Path) -> None:
    """The folder has only prompts, and each has the content that its name tells."""
    for path in folder.iterdir():
        _, _, crc, nbytes = path.name.removesuffix(SUFFIX).split("-")
        assert path.suffix == SUFFIX, path
        assert (checksum(path), path.stat().st_size) == (int(crc, 16), int(nbytes)), path


def kills(tmp_path: Path, watched: Path, run: Callable[[dict[str, str]], bool]) -> Iterator[int]:
    """Run a command that is killed before its first change, its second, and so on.

    run: runs it with this environment; returns whether all went well. Yields after each kill; ends
    when the command came to its end.
    """
    for number in range(100):
        command = KilledCommand(tmp_path / f"kill-{number}", watched, number)
        was_well = run(command.env())
        if not command.was_killed():
            assert was_well
            assert number >= FEWEST
            return
        assert not was_well
        assert wait_until(lambda: not processes_of(watched), 10), processes_of(watched)
        yield number


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_server_goes_on_as_if_nothing_had_been_kept(voices, tmp_path, data, is_filled):
    """After a kill while it starts, restores, saves or ends."""
    env, folder = {"XDG_DATA_HOME": str(data)}, folder_of(data)
    with serving(tmp_path, *voices, env=env) as served:
        expected = {model: text_of(asked(served, model)) for model in MODELS}
        end(served)
    assert len(set(expected.values())) == len(MODELS)
    first = tmp_path / "first"
    shutil.copytree(folder, first, copy_function=shutil.copy2)
    assert len([*first.glob(f"*{SUFFIX}")]) >= 1

    def run(more: dict[str, str]) -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        if is_filled:
            shutil.copytree(first, folder, copy_function=shutil.copy2)
        with (
            suppress(OSError, HTTPException, AssertionError, ValueError),
            serving(tmp_path, *voices, env=env | more) as served,
        ):
            asked(served, "base:pirate")
            end(served)
            return True
        return False

    for number in kills(tmp_path, folder, run):
        assert_private(folder)
        with serving(tmp_path, *voices, env=env) as served:
            found = {model: asked(served, model) for model in ("base:liar", "base:pirate", "base")}
            assert {model: text_of(one) for model, one in found.items()} == expected, number
            assert is_filled or not (is_cached(found["base"]) or is_cached(found["base:liar"]))
            end(served)
        assert_private(folder)
        assert_whole(folder)


def test_a_chat_goes_on_as_if_nothing_had_been_kept(pirate, tmp_path, data):
    env, folder = {"XDG_DATA_HOME": str(data)}, folder_of(data) / "chat"
    arguments = (pirate, "-n", 8, "--temperature", 0)

    def answer(**more: str) -> str:
        with chat(*arguments, **env | more) as terminal:
            terminal.ready()
            said = terminal.enter(LONG)
            terminal.send("/bye\r")
            assert terminal.wait() == 0
        return said

    expected = answer()
    assert len([*folder.glob(f"*{SUFFIX}")]) == 1

    def run(more: dict[str, str]) -> bool:
        with suppress(AssertionError, OSError):
            return answer(**more) == expected
        return False

    for number in kills(tmp_path, folder, run):
        assert_private(folder)
        assert answer() == expected, number
        assert_private(folder)
        assert_whole(folder)


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_kill_while_the_engine_writes_leaves_no_process_and_no_file(
    voices, tmp_path, data, victim
):
    env, folder = {"XDG_DATA_HOME": str(data)}, folder_of(data)
    with serving(tmp_path, *voices, env=env) as served:
        expected = text_of(asked(served, "base:pirate"))
        (engine,) = served.children()
        os.kill(engine, signal.SIGSTOP)  # so that it never finishes
        served.process.terminate()
        time.sleep(0.5)
        (place,) = folder.glob(f"{SAVING}*")
        (place / "saved").write_bytes(b"half")
        assert served.process.poll() is None
        os.kill(engine if victim == "engine" else served.process.pid, signal.SIGKILL)
        assert served.process.wait(20) == (0 if victim == "engine" else -signal.SIGKILL)
        assert wait_until(lambda: not processes_of(folder), 10), processes_of(folder)
    with serving(tmp_path, *voices, env=env) as served:
        again = asked(served, "base:pirate")
        assert not place.exists()
        end(served)

    assert (text_of(again), is_cached(again)) == (expected, False)
    assert_whole(folder)
