"""Folders appear complete or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter.core.atomic_folder import atomic_folder
from exporter.core.errors import OutputError

MARKS = ("config.json",)


def fill(
    path: Path, *, plan: str = "a", force: bool = False, said: list[str] | None = None
) -> None:
    notes = [] if said is None else said
    with atomic_folder(
        path, plan=plan, marks=MARKS, force=force, report=lambda event: notes.append(event.message)
    ) as new:
        (new / "config.json").write_text(plan)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_while_filling(path: Path, plan: str) -> None:
    """A process that has written one file dies by SIGKILL."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from exporter.core.atomic_folder import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), plan=sys.argv[2], marks=('config.json',)) as new:\n"
        "    (new / 'shard').write_text('whole')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), plan], check=False)
    assert done.returncode == -9


def test_the_folder_appears_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "out", plan="a", marks=MARKS) as new:
        (new / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="oh"):
        with atomic_folder(tmp_path / "out", plan="a", marks=MARKS) as new:
            (new / "config.json").write_text("{}")
            raise ValueError("oh")

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_folder(tmp_path / "out", plan="a", marks=MARKS) as new:
            (new / "shard").write_text("whole")
            raise KeyboardInterrupt

    said: list[str] = []
    fill(tmp_path / "out", said=said)

    assert names(tmp_path / "out") == ["config.json", "shard"]
    assert said == ["resuming an earlier run of the same export"]


def test_a_killed_run_leaves_nothing_under_the_name_and_goes_on(tmp_path):
    kill_while_filling(tmp_path / "out", "a")
    assert not (tmp_path / "out").exists()

    fill(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "shard").read_text() == "whole"


def test_what_another_plan_left_is_removed_and_said(tmp_path):
    kill_while_filling(tmp_path / "out", "b")

    said: list[str] = []
    fill(tmp_path / "out", said=said)

    assert names(tmp_path / "out") == ["config.json"]
    assert said == ["the remains of an earlier run belong to another export: starting over"]


def test_a_second_process_is_told(tmp_path):
    with atomic_folder(tmp_path / "out", plan="a", marks=MARKS):
        with pytest.raises(OutputError, match="another process is writing"):
            fill(tmp_path / "out")

    assert (tmp_path / "out").is_dir()


def test_an_existing_folder_is_replaced_with_force_alone(tmp_path):
    fill(tmp_path / "out", plan="old")
    with pytest.raises(OutputError, match=r"out` exists"):
        fill(tmp_path / "out", plan="new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"

    fill(tmp_path / "out", plan="new", force=True)

    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="exists"):
        with atomic_folder(tmp_path / "out", plan="a", marks=MARKS):
            fill_by_hand(tmp_path / "out")

    assert (tmp_path / "out" / "config.json").read_text() == "theirs"


def fill_by_hand(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("theirs")


@pytest.mark.parametrize("entry", ["notes.txt", "config.json"])
def test_force_never_replaces_what_is_no_exported_model(tmp_path, entry):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / entry).write_text("mine")
    if entry == "config.json":
        (tmp_path / "out" / "checkpoint-50").mkdir()

    with pytest.raises(OutputError, match="holds more than an exported model"):
        fill(tmp_path / "out", force=True)

    assert (tmp_path / "out" / entry).read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "out").mkdir()

    fill(tmp_path / "out")

    assert names(tmp_path / "out") == ["config.json"]


def test_a_file_of_that_name_is_no_place(tmp_path):
    (tmp_path / "out").write_text("")

    with pytest.raises(OutputError, match="is not a folder"):
        fill(tmp_path / "out", force=True)
