"""Starts the shim some hundred times without importing everything each time: by forking.

`python -m tests.upstream.forks ADDRESS` waits, with the shim imported, for programs that connect
to its socket. A program hands over its arguments, environment, folder and output, and lives as
long as the fork that serves in its place.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SHELL = """\
#!/bin/sh
exec '{python}' -ISB '{program}' "$@"
"""
"""A path with spaces cannot stand behind #!."""
PROGRAM = """\
import array, json, os, signal, socket, sys

asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
door = socket.socket(socket.AF_UNIX)
door.connect({address!r})
door.sendmsg([len(asked).to_bytes(4, "big")],
             [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])
door.sendall(asked)
fork = int.from_bytes(door.recv(4), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
code = door.recv(1)
os._exit(code[0] if code else 1)
"""


@contextmanager
def forking(folder: Path) -> Iterator[Path]:
    """A program that is llama-server with decant's gateway in its place."""
    address, program = folder / "forks.sock", folder / "decant-as-llama-server"
    address.unlink(missing_ok=True)
    code = program.with_suffix(".py")
    code.write_text(PROGRAM.format(address=str(address)))
    program.write_text(SHELL.format(python=sys.executable, program=code))
    program.chmod(0o755)
    argv = [sys.executable, "-m", __name__, str(address)]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"ready\n"
        yield program
        it.communicate()


def main() -> None:
    from tests.upstream import shim

    door = socket.socket(socket.AF_UNIX)
    door.bind(sys.argv[1])
    door.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of forks
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin not in (ready := select.select([sys.stdin, door], [], [])[0]):
        assert door in ready
        program, _ = door.accept()
        if os.fork() == 0:
            door.close()
            code = 1
            try:
                code = shim.main(taken_over(program))
            finally:
                sys.stderr.flush()
                program.send(bytes([code]))
                os._exit(code)
        program.close()


def taken_over(program: socket.socket) -> list[str]:
    """Become what the program would have been; its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    size, ancillary, _, _ = program.recvmsg(4, socket.CMSG_SPACE(8))
    outputs = array.array("i", ancillary[0][2])
    for output, number in zip(outputs, (1, 2), strict=True):
        os.dup2(output, number)
        os.close(output)
    with program.makefile("rb", buffering=0) as file:
        left = int.from_bytes(size, "big")
        parts = []
        while left:
            parts.append(file.read(left))
            left -= len(parts[-1])
    argv, environment, folder = json.loads(b"".join(parts))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    program.send(os.getpid().to_bytes(4, "big"))
    threading.Thread(target=end_with, args=(program,), daemon=True).start()
    return argv


def end_with(program: socket.socket) -> None:
    """Be killed when the program was."""
    if not program.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
