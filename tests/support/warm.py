"""Python programs as processes of their own that need not import torch: forks of one that has.

`python -m tests.support.warm` is that one. It reads a job a line, forks, and writes the child's
number and, when the child has ended, its status. It never runs anything itself, so that a child
differs from a process that python has just started only by what is imported. What is tested for its
imports, for signals or for its start is started as ever.
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
    """A script (`x.py`) or module with its arguments, as subprocess.run would give it."""
    command = [str(argument) for argument in argv]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        job = {"argv": command, "env": dict(env or os.environ), "out": str(out), "err": str(err)}
        code = Forks.started().run(job, timeout_s)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


class Forks:
    """The process that forks, seen from outside."""

    def __init__(self) -> None:
        """Start it; it imports while others work."""
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
    """Returns in each child, with what it is to do; at the end with nothing."""
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
    """Be the program, with these files as its output."""
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

    assert transformers.LlamaForCausalLM  # what is named is imported with much else
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
