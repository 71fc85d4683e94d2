"""A tool runs in the foreground: its signals and exit codes are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.core.errors import InputError
from runtime.launch.tool_process import run_tool

CHECKOUT = Path(__file__).parents[3]
SAYS = "import os, sys; sys.exit(int(os.environ['CODE']))"
RUN = (
    "import sys; from runtime.launch.tool_process import run_tool; sys.exit(run_tool([*{}], {{}}))"
)


def test_the_exit_code_is_the_tools():
    assert run_tool([sys.executable, "-c", SAYS], {"CODE": "7"}) == 7
    assert "CODE" not in os.environ


def test_a_script_whose_interpreter_is_gone_is_told(tmp_path):
    script = tmp_path / "tool"
    script.write_text("#!/nowhere/python\n")
    script.chmod(0o755)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InputError, match=f"`{script}` cannot be started: No such file") as caught:
        run_tool([str(script)], {})

    assert "install it again" in caught.value.hint
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_gives_a_shells_exit_code():
    assert run_tool(["sh", "-c", "kill -9 $$"], {}) == 137


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_tool(["true"], {})

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@contextmanager
def running(tool: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a tool, which has said that it is ready; both in a new group."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(tool)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


@pytest.mark.lasting
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_tool_gets_the_signals_and_decides(number):
    script = "trap 'exit 5' TERM HUP; echo ready; while :; do sleep 0.02; done"
    with running(["sh", "-c", script]) as process:
        process.send_signal(number)
        assert process.wait(10) == 5


@pytest.mark.lasting
def test_a_ctrl_c_is_neither_decants_end_nor_repeated():
    """The terminal sends it to both; here only decant gets it."""
    with running(["sh", "-c", "trap 'exit 5' INT; echo ready; sleep 0.4; exit 6"]) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 6


@pytest.mark.lasting
def test_a_tool_does_not_inherit_that_ctrl_c_is_ignored():
    argv = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"]
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(argv)], cwd=CHECKOUT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert "default_int_handler" in done.stdout
