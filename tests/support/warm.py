"""Runs Python programs as forks of a process that has imported torch, to save the import time.

`python -m tests.support.warm` is that process. It reads one job per line, forks, and writes the
child's id and, when the child has ended, its status. It never runs a job itself, so that a child
differs from a new Python process only by the imported modules. Tests of imports, of signals or of
the start use new processes instead.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def run_warm(
    argv: Sequence[object], *, env: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a script (`x.py`) or a module with its arguments; returns as subprocess.run does."""
    command = [str(argument) for argument in argv]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        job = {"argv": command, "env": dict(env or os.environ), "out": str(out), "err": str(err)}
        code = Forks.started().run(job, timeout_s)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


class Forks:
    """Starts the forking process, and sends it jobs."""

    def __init__(self) -> None:
        """Start the process; it imports torch in the background."""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.warm"],
            cwd=CHECKOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.process.communicate)

    @classmethod
    @functools.cache
    def started(cls) -> Forks:
        return cls()

    def run(self, job: Mapping[str, object], timeout_s: float) -> int:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        pid = self.heard()
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            os.kill(pid, signal.SIGKILL)
            self.heard()
            raise subprocess.TimeoutExpired(str(job["argv"]), timeout_s)
        return self.heard()

    def heard(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


def next_job() -> dict[str, Any] | None:
    """Fork for each job; returns the job in each child, and None in the parent at the end."""
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        pid = os.fork()
        if not pid:
            return dict(json.loads(line))
        tell(pid)
        status = os.waitpid(pid, 0)[1]
        tell(os.waitstatus_to_exitcode(status))
    return None


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def run_here(argv: list[str], env: dict[str, str], out: str, err: str) -> None:
    """Run the program in this process, with these files as its output."""
    for number, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv
    if argv[0].endswith(".py"):
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def main() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers

    from tests.support.forked import import_commands

    import_commands()
    assert transformers.LlamaForCausalLM  # transformers imports a class when it is named
    assert transformers.LlamaTokenizer
    if job := next_job():
        try:
            run_here(**job)
            code: object = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException:  # noqa: BLE001 - as python ends a program
            traceback.print_exc()
            code = 1
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)  # python's own end goes through all of torch


if __name__ == "__main__":
    main()
