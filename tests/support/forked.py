"""Starts `decant` as a fork of a process that has imported its commands, to save that time.

`python -m tests.support.forked` is that process. It reads jobs from its standard input, a socket,
and forks; the child becomes what `python -m exporter` would be, and ends as python ends. It never
runs a job itself, so that a child differs from a new process only by the imported modules. Tests of
imports, or of how python starts, use new processes instead.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "exporter"]
USED_LATER = (
    "runtime.chat.repl.start", "runtime.gateway.asgi_app", "runtime.gateway.server",
    "runtime.gateway.scheduling.pool", "prompt_toolkit", "rich.markdown", "rich.progress",
    "exporter.export", "exporter.hub.pull", "exporter.verify.verify_file",
    "exporter.formats.gguf_lora", "exporter.formats.safetensors_folder",
)  # fmt: skip
"""Modules that commands import as they run. None may read the environment when it is imported."""
READS_IT = "huggingface_hub.constants"
READ_AT_THE_START = ("PYTHON", "LC_", "LANG", "COVERAGE_", "OPENSSL_", "LD_")
"""The beginnings of variables that python or its libraries read when they start."""
IN_A_TEST = "PYTEST_CURRENT_TEST"
"""The variable that pytest sets while a test runs; benchmarks measure new processes."""
NUMBER = struct.Struct("!q")
FILES = 4  # that come with a job: standard input, output and error, and where news of it go


def popen(argv: Sequence[str], *, terminal: bool = False, **options: Any) -> subprocess.Popen[Any]:
    """As subprocess.Popen in the checkout; a fork where the program is decant, in a test.

    terminal: whether standard input becomes the controlling terminal.
    """
    argv = list(argv)
    env = options.get("env") or os.environ
    is_ours = argv[: len(COMMAND)] == COMMAND and "preexec_fn" not in options
    is_ours = is_ours and IN_A_TEST in os.environ
    if is_ours and at_the_start(env) == at_the_start(os.environ):
        return Forked(argv, terminal=terminal, cwd=CHECKOUT, **options)
    if terminal:
        options["preexec_fn"] = take_terminal
    return subprocess.Popen(argv, cwd=CHECKOUT, **options)


def run(
    argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run in the checkout, without an input and with the output as texts."""
    pipe = subprocess.PIPE
    process = popen(
        argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def at_the_start(env: Mapping[str, str]) -> dict[str, str]:
    """What python reads when it starts; it looks for modules in the checkout anyhow."""
    given = {name: value for name, value in env.items() if name.startswith(READ_AT_THE_START)}
    if given.get("PYTHONPATH") == str(CHECKOUT):
        del given["PYTHONPATH"]
    return given


def take_terminal() -> None:
    """Make standard input the controlling terminal, whose Ctrl-C sends signals."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Forked(subprocess.Popen):  # type: ignore[type-arg]  # its texts are as the caller says
    """A process whose parent is the forking process, which sends its status."""

    def __init__(self, argv: Sequence[str], *, terminal: bool, **options: Any) -> None:
        self.terminal = terminal
        super().__init__(argv, **options)

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        cwd, env, ends, has_session = rest[4], rest[5], rest[9:15], rest[20]
        job = {
            "argv": list(args[len(COMMAND) :]), "cwd": str(cwd), "env": dict(env or os.environ),
            "has_session": has_session, "terminal": self.terminal,
        }  # fmt: skip
        self.news, far = os.pipe()
        theirs = (ends[0], ends[3], ends[5])
        files = [number if file == -1 else file for number, file in enumerate(theirs)]
        forks().send(job, [*files, far])
        os.close(far)
        self.pid = heard(self.news)
        self._child_created = True
        self._close_pipe_fds(*ends)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags and not select.select([self.news], [], [], 0)[0]:
            return 0, 0
        status = heard(self.news)
        os.close(self.news)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                if self.returncode is None:  # no other thread has waited
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            except EOFError:
                if _deadstate is None:
                    raise
                self.returncode = _deadstate
            finally:
                self._waitpid_lock.release()
        return self.returncode


@functools.cache
def forks() -> CommandForks:
    """The forking process of this process."""
    return CommandForks()


class CommandForks:
    """Starts the forking process, and sends it jobs."""

    def __init__(self) -> None:
        """Start the process; it ends when this one does."""
        self.channel, far = socket.socketpair()
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked"],
            cwd=CHECKOUT,
            stdin=far,
        )
        far.close()
        atexit.register(self.end)

    def end(self) -> None:
        if os.getpid() == self.owner:  # not in a fork of it
            self.channel.shutdown(socket.SHUT_RDWR)
            self.process.wait()

    def send(self, job: Mapping[str, object], files: list[int]) -> None:
        text = json.dumps(job).encode()
        with self.lock:
            socket.send_fds(self.channel, [NUMBER.pack(len(text))], files)
            self.channel.sendall(text)


def heard(file: int) -> int:
    """The next number from a pipe. Raises EOFError if the forking process has ended."""
    found = os.read(file, NUMBER.size)
    if not found:
        raise EOFError("the forking process has ended")
    return int(NUMBER.unpack(found)[0])


def next_job() -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each job; returns it with its files in each child; None at the end of them."""
    channel = socket.socket(fileno=0)
    woken, waking = socket.socketpair()
    for end in (woken, waking):
        end.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno())
    telling: dict[int, int] = {}  # where the news of each child go
    while True:
        ready = select.select([channel, woken], [], [])[0]
        if woken in ready:
            woken.recv(1 << 10)
            tell_of_ended(telling)
        if channel not in ready:
            continue
        head, files, *_ = socket.recv_fds(channel, NUMBER.size, FILES)
        if not head:
            return None
        text = channel.recv(NUMBER.unpack(head)[0], socket.MSG_WAITALL)
        if not (pid := os.fork()):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            close(*telling.values(), files.pop(), woken.detach(), waking.detach())
            channel.detach()  # standard input is opened anew
            return json.loads(text), files
        tell(files[-1], pid)
        telling[pid] = files.pop()
        close(*files)


def tell_of_ended(telling: dict[int, int]) -> None:
    for pid in list(telling):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            tell(telling[pid], status)
            close(telling.pop(pid))


def close(*files: int) -> None:
    for file in files:
        os.close(file)


def tell(file: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test has ended without waiting
        os.write(file, NUMBER.pack(number))


def become(job: Mapping[str, Any], files: list[int]) -> None:
    """Make this process what python is before it runs the program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    close(*files)
    if job["has_session"]:
        os.setsid()
    if job["terminal"]:
        take_terminal()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    time.tzset()
    is_direct = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        raw = open(  # noqa: SIM115 - for good
            number, "wb" if number else "rb", buffering=0 if number and is_direct else -1,
            closefd=False,
        )  # fmt: skip
        made = io.TextIOWrapper(
            raw, before.encoding, before.errors, write_through=bool(number and is_direct),
            line_buffering=number == 2 or os.isatty(number),
        )  # fmt: skip
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    sys.argv[:] = ["", *job["argv"]]


def import_commands() -> None:
    """Import the commands and what they use, and read what stays the same for all of them."""
    from exporter.cli.app import COMMANDS
    from exporter.core.kept_values import LIBRARIES
    from exporter.core.version import code_hash, own_version, version

    names = (place.partition(":")[0] for place, _ in COMMANDS.values())
    for name in (*names, *USED_LATER):
        importlib.import_module(name)
    code_hash()
    for name in LIBRARIES:
        version(name)
    own_version()


def main() -> None:
    import_commands()
    assert READS_IT not in sys.modules
    gc.collect()
    gc.freeze()
    if (found := next_job()) is not None:
        become(*found)
        runpy.run_module("exporter", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
