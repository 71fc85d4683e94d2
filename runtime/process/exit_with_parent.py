"""Runs a program that ends when its starter ends, even by SIGKILL.

`python -I -S exit_with_parent.py --parent PID PROGRAM ARGUMENT…` replaces itself with the program,
which Linux kills when the thread that started it ends. On other systems
this process stays as the program's guard: `python -I -S exit_with_parent.py PROGRAM ARGUMENT…`. Its
standard input is a pipe, and the starter holds the other end. When the starter ends, the pipe
closes and the guard kills the program.
The guard exits with the program's status, or 128 + the signal that killed it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

PARENT = "--parent"
INPUT = 0  # standard input
PR_SET_PDEATHSIG = 1  # linux/prctl.h
NOT_FOUND = 127  # a shell's status for a program that cannot be started


def run_guarded(argv: list[str]) -> int:
    """Run a program until it ends or standard input ends; return its exit status.

    The program's standard input stays open and empty; SIGTERM is passed on to it.
    """
    import subprocess  # here: each start of an engine waits for this file's imports
    import threading

    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before the program started

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)  # first: once the program is up, a SIGTERM may come
    child = program = subprocess.Popen(argv, stdin=subprocess.PIPE)
    for number in early:
        program.send_signal(number)

    def watch() -> None:
        while os.read(INPUT, 1 << 10):  # sys.stdin's lock would abort this process at its end
            pass
        program.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = program.wait()
    return 128 - status if status < 0 else status


def end_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends; exec keeps the setting."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl: no signal will come
        os.kill(os.getpid(), signal.SIGKILL)


def become(argv: list[str], parent: int) -> int:
    """Exec the program, which ends with its parent; return only if it cannot be started."""
    end_with_parent(parent)
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
    return NOT_FOUND


def main(arguments: list[str]) -> int:
    if arguments[0] != PARENT:
        return run_guarded(arguments)
    return become(arguments[2:], int(arguments[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
