"""Ends a function's process with SIGKILL at its n-th call that changes the file system."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

CHANGES = {"os.link", "os.symlink", "os.rename", "os.remove", "os.mkdir", "open", "os.truncate"}


def killed_at_each_change(act: Callable[[], object]) -> Iterator[int]:
    """Run `act` in forks that are killed before their first change, their second, and so on.

    Yields the number after each kill; ends when a fork lives to the end.
    """
    number = 0
    while killed_before(act, number):
        yield number
        number += 1


def killed_before(act: Callable[[], object], number: int) -> bool:
    """Run `act` in a fork; whether it was killed, as it does not make so many changes."""
    pid = os.fork()
    if pid == 0:
        left = [number]

        def hook(event: str, args: tuple[object, ...]) -> None:
            if event in CHANGES and not (event == "open" and not is_written(args)):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            act()
        except BaseException:  # noqa: BLE001 - nothing goes on in a fork
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert status == 0
    return False


def is_written(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
