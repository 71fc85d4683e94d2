"""Runs child processes with their output in a log, and stops them."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from .report import BuildError

TAIL = 20  # lines of a log in an error message
STOP_S = 10  # ninja waits for its compilers to clean up


def run_logged(
    argv: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str],
    what: str,
    on_line: Callable[[str], None] = lambda _: None,
    pass_fds: Collection[int] = (),
) -> None:
    """Run `argv` and append its output to `log`.

    Raises BuildError, with the log's last lines, if it fails.
    """
    with log.open("a", encoding="utf-8", buffering=1) as out:
        out.write(f"$ {shlex.join(argv)}\n")
        process = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=tuple(pass_fds),
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                out.write(line)
                on_line(line)
            process.wait()
        finally:
            stop(process, patience_s=STOP_S)
    if process.returncode:
        raise BuildError(
            f"{what}: `{shlex.join(argv)}` {ending(process.returncode)}; "
            f"the last lines:\n{last_lines(log)}",
            hint=f"the whole log is `{log}`",
        )


def stop(process: subprocess.Popen[str], *, patience_s: float) -> None:
    """End `process` with SIGTERM, then SIGKILL if it does not exit. Does nothing if it has
    exited.
    """
    try:
        if process.stdin is not None:
            process.stdin.close()  # llama-server joins the thread that reads stdin before it exits
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()


def ending(returncode: int) -> str:
    """Describe how a process ended, from its return code."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"died with {signal.Signals(-returncode).name}"
    except ValueError:
        return f"died with signal {-returncode}"


def last_lines(log: Path, count: int = TAIL) -> str:
    """Return the last lines of `log`, for an error message."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-count:])
