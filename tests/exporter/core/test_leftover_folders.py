"""Temporary folders of killed processes go; those of running ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.core.leftover_folders import PROC, start_of, temporary_folder

PREFIX = ".saving-"


def make(folder: Path, pid: int, start: str) -> Path:
    left = folder / f"{PREFIX}{pid}-{start}-abc"
    left.mkdir()
    (left / "file").write_text("x")
    return left


def test_a_folder_goes_with_its_block_and_others_of_the_process_stay(tmp_path):
    with temporary_folder(tmp_path, PREFIX) as one:
        with temporary_folder(tmp_path, PREFIX) as two:
            assert sorted(tmp_path.iterdir()) == sorted(map(Path, (one, two)))
        assert list(tmp_path.iterdir()) == [Path(one)]


def test_what_an_ended_process_left_is_deleted(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = make(tmp_path, process.pid, start_of(process.pid))
    with temporary_folder(tmp_path, PREFIX):
        assert left.exists()
    process.communicate()
    make(tmp_path, 10**12, "")
    (tmp_path / f"{PREFIX}x-y").mkdir()
    with temporary_folder(tmp_path, PREFIX) as own:
        assert list(tmp_path.iterdir()) == [Path(own)]


@pytest.mark.skipif(not PROC.is_dir(), reason="the system does not tell a process's state")
def test_what_a_process_left_that_has_still_to_be_waited_for_is_deleted(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    make(tmp_path, process.pid, start_of(process.pid))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended: a zombie
    try:
        with temporary_folder(tmp_path, PREFIX) as own:
            assert list(tmp_path.iterdir()) == [Path(own)]
    finally:
        process.communicate()


@pytest.mark.skipif(not PROC.is_dir(), reason="the system does not tell when a process began")
def test_what_another_process_with_this_id_left_is_deleted(tmp_path):
    """As in a container that is started again, where each decant has the id 1."""
    make(tmp_path, os.getpid(), str(int(start_of(os.getpid())) - 1))
    with temporary_folder(tmp_path, PREFIX) as own:
        assert list(tmp_path.iterdir()) == [Path(own)]
