"""Runs a program that reads no standard input, and ends it when ours does.

`python -I -S exit_with_parent.py PROGRAM ARGUMENT…`, with a pipe as standard input whose other end
the starter holds. The starter may end in any way, SIGKILL too: the pipe closes, the program is
killed.
It ends with the program's own status, or 128 + the signal that killed it.
"""

from __future__ import annotations

import subprocess
import sys
import threading


def run_guarded(argv: list[str]) -> int:
    """The program's status, when it has ended by itself or because standard input has."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while sys.stdin.buffer.read(1 << 10):
            pass
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(run_guarded(sys.argv[1:]))
