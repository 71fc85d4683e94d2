"""A fork of the process that has decant's commands is what a new process would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked import COMMAND, IN_A_TEST, Forked, forks, popen, run
from tests.support.processes import wait_until

pytestmark = pytest.mark.lasting


def in_a_new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["list", "--json"], ["exprot"], ["serve", "/no/such", "--quiet"], []],
    ids=str,
)
def test_code_and_output_are_those_of_a_new_process(arguments):
    expected = in_a_new_process(*arguments)

    found = run([*COMMAND, *arguments], timeout_s=20, env=os.environ)

    assert (found.returncode, found.stdout, found.stderr) == (
        expected.returncode, expected.stdout, expected.stderr,
    )  # fmt: skip


def asked(**options) -> Forked:
    """`decant completion` has much to print; `chat` waits for its input."""
    process = popen([*COMMAND, "chat", "no-such-model"], stdin=subprocess.PIPE, **options)
    assert isinstance(process, Forked)
    return process


def test_a_signal_is_in_the_status_and_the_parent_is_told_at_once():
    with asked() as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.kill()

    assert process.returncode == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


def test_ctrl_c_interrupts_it_and_not_the_process_that_forks():
    forks()
    os.kill(forks().process.pid, signal.SIGINT)
    with asked(stderr=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        assert wait_until(lambda: "State:\tS" in status.read_text())
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]

    assert process.returncode == 130
    assert said.strip() == "interrupted"


def test_what_python_reads_when_it_starts_gets_a_new_process():
    with popen([*COMMAND, "--version"], env={**os.environ, "PYTHONUTF8": "0"},
               stdout=subprocess.DEVNULL) as process:  # fmt: skip
        assert not isinstance(process, Forked)
    with popen([sys.executable, "-c", ""]) as process:
        assert not isinstance(process, Forked)


def test_a_benchmark_gets_a_new_process(monkeypatch):
    monkeypatch.delenv(IN_A_TEST)
    with popen([*COMMAND, "--version"], stdout=subprocess.DEVNULL) as process:
        assert not isinstance(process, Forked)
