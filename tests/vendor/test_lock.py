from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from vendor.lock import file_lock

CHECKOUT = Path(__file__).parents[2]


def never() -> None:
    raise AssertionError("somebody else holds the lock")


def test_lock_is_free_again_after_the_block(tmp_path: Path):
    for _ in range(2):
        with file_lock(tmp_path / "new" / "lock", waiting=never):
            pass


def test_lock_outlives_a_killed_holder_until_its_child_has_ended(tmp_path: Path):
    lock = tmp_path / "lock"
    program = f"""
import os, signal, subprocess
from pathlib import Path
from vendor.lock import file_lock
with file_lock(Path({str(lock)!r}), waiting=lambda: None) as held:
    subprocess.Popen(["cat"], pass_fds=[held])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, stdin=subprocess.PIPE)
    assert holder.stdin is not None
    assert os.waitstatus_to_exitcode(os.waitpid(holder.pid, 0)[1]) == -signal.SIGKILL
    holder.returncode = -signal.SIGKILL
    waited = []

    def let_the_child_end() -> None:
        waited.append(True)
        holder.stdin.close()

    with file_lock(lock, waiting=let_the_child_end):
        assert waited == [True]
