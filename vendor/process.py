"""Child processes: run one with its output in the log, stop one for certain."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from .report import BuildError

TAIL = 20  # lines of a log that an error shows
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
    """Run `argv`, its output appended to `log`; raise with the log's last lines if it fails."""
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
    """End `process`: SIGTERM, and SIGKILL where that is not enough. Does nothing after its end."""
    try:
        if process.stdin is not None:
            process.stdin.close()  # llama-server joins the thread that reads it before it goes
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
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"died with {signal.Signals(-returncode).name}"
    except ValueError:
        return f"died with signal {-returncode}"


def last_lines(log: Path, count: int = TAIL) -> str:
    """The last lines of `log`, for an error message."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-count:])
