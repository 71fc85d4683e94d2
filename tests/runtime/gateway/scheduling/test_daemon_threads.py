"""Threads that may hang, and do not keep the process from ending."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.gateway.scheduling.daemon_threads import in_daemon

CHECKOUT = Path(__file__).parents[4]
HANGING = """
import asyncio, threading
from runtime.gateway.scheduling.daemon_threads import in_daemon
async def main():
    await asyncio.wait({asyncio.ensure_future(in_daemon(threading.Event().wait))}, timeout=0.1)
asyncio.run(main())
"""


def test_a_result_and_an_error_come_back():
    def fail() -> None:
        raise KeyError("no")

    assert asyncio.run(in_daemon(lambda: 3)) == 3
    with pytest.raises(KeyError, match="no"):
        asyncio.run(in_daemon(fail))


def test_the_process_ends_while_one_hangs():
    done = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=CHECKOUT, timeout=20, capture_output=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")
