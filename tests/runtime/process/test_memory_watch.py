"""A process that takes more memory than it may is killed; mapped files are not counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.process.memory_watch import OOM_SCORE, MemoryLimit, MemoryWatch, end_first
from tests.support.processes import wait_until

pytestmark = [
    pytest.mark.lasting,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]

MIB = 1 << 20
GROWS = """
import sys, time
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print("held", flush=True)
"""
MAPS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[at] for at in range(0, len(mapped), 4096))
    print("mapped", flush=True)
    sys.stdin.read()
"""


def started(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def hold(process: subprocess.Popen[bytes], nbytes: int) -> None:
    process.stdin.write(b"%d\n" % nbytes)
    process.stdin.flush()


def test_what_grows_beyond_its_limit_is_killed():
    with started(GROWS) as process:
        watch = MemoryWatch(process, MemoryLimit(64 * MIB, 0))
        hold(process, 20 * MIB)
        assert process.stdout.readline() == b"held\n"
        assert not wait_until(lambda: process.poll() is not None, 0.4)
        assert not watch.taken
        hold(process, 80 * MIB)

        assert wait_until(lambda: process.poll() is not None, 5)
        assert watch.taken > 64 * MIB
        assert watch.most == 64 * MIB


def test_what_is_ready_may_grow_from_there():
    with started(GROWS) as process:
        watch = MemoryWatch(process, MemoryLimit(200 * MIB, 60 * MIB))
        hold(process, 100 * MIB)
        assert process.stdout.readline() == b"held\n"
        watch.is_ready()
        hold(process, 30 * MIB)
        assert process.stdout.readline() == b"held\n"
        assert not wait_until(lambda: process.poll() is not None, 0.4)
        hold(process, 50 * MIB)  # 180 are less than 200, and more than 60 in addition

        assert wait_until(lambda: process.poll() is not None, 5)


def test_a_mapped_file_is_not_counted(tmp_path):
    file = tmp_path / "weights"
    with file.open("wb") as sparse:
        sparse.truncate(200 * MIB)
    with started(MAPS, file) as process:
        MemoryWatch(process, MemoryLimit(50 * MIB, 0))
        assert process.stdout.readline() == b"mapped\n"
        assert not wait_until(lambda: process.poll() is not None, 0.5)


def test_a_machine_without_memory_ends_an_engine_first():
    with started(GROWS) as process:
        end_first(process.pid)
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == OOM_SCORE
