"""A tool runs in the foreground: its signals and exit codes are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.launch.tool_process import run_tool

CHECKOUT = Path(__file__).parents[3]
SAYS = "import os, sys; sys.exit(int(os.environ['CODE']))"
RUN = (
    "import sys; from runtime.launch.tool_process import run_tool; sys.exit(run_tool([*{}], {{}}))"
)


def test_the_exit_code_is_the_tools():
    assert run_tool([sys.executable, "-c", SAYS], {"CODE": "7"}) == 7
    assert "CODE" not in os.environ


def test_a_signal_gives_a_shells_exit_code():
    assert run_tool(["sh", "-c", "kill -9 $$"], {}) == 137


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_tool(["true"], {})

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.lasting
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_tool_gets_the_signals_and_decides(number):
    """SIGINT comes from the terminal to both; decant waits for what the tool does."""
    tool = ["sh", "-c", "trap 'exit 5' TERM HUP INT; echo ready; while :; do sleep 0.02; done"]
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(tool)], cwd=CHECKOUT, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        if number == signal.SIGINT:
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        assert running.wait(10) == 5


@pytest.mark.lasting
def test_a_tool_does_not_inherit_that_ctrl_c_is_ignored():
    argv = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"]
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(argv)], cwd=CHECKOUT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert "default_int_handler" in done.stdout
