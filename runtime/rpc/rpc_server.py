"""ggml-rpc-servers on ports of the loopback: started, connected to, used again, gone."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import WorkerError
from exporter.llamacpp.toolchain import LAST_LINES, Toolchain, scrubbed
from runtime.process.kept_processes import start_kept
from runtime.process.run_dir import RunFolder

LOOPBACK = "127.0.0.1"
START_S = 60  # a GPU's first use
POLL_S = 0.005
STOP_S = 5
ACCEPTED = b"Accepted client connection"  # printed and flushed for each


@dataclass(frozen=True, slots=True)
class RpcSpec:
    """How a worker computes."""

    threads: int
    cache: Path | None = None
    """A folder that keeps large tensors, so that they are sent once."""


class RpcServer:
    """A ggml-rpc-server, which serves one client at a time.

    `runtime/process/exit_with_parent.py` runs it and ends it when our end of a pipe closes, however
    that happens: the server itself reads no input. It sees none of the caller's environment.
    """

    def __init__(self, spec: RpcSpec, toolchain: Toolchain) -> None:
        """Start it; `connect` waits until it listens. Raises WorkerError."""
        self.folder = RunFolder()
        self.port = free_port()
        self.clients = 0
        argv = [
            str(toolchain.tool("ggml-rpc-server")),
            "-H", LOOPBACK, "-p", str(self.port), "-t", str(spec.threads),
            *(["-c"] if spec.cache else []),
        ]  # fmt: skip
        env = scrubbed(os.environ) | {"LLAMA_CACHE": str(spec.cache or self.folder.path)}
        try:
            with self.folder.log.open("wb") as log:
                self.process = start_kept(
                    argv,
                    by_kernel=False,  # the guard notices that `stop` closes its input
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder.path,
                    env=env,
                    start_new_session=True,  # Ctrl-C in the terminal is ours to handle
                )
        except BaseException:
            self.folder.remove()
            raise

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def connect(self) -> socket.socket:
        """A connection that it has accepted. Raises WorkerError when it ends or stays mute.

        That it has accepted one is read in its log: another process may have taken the port.
        """
        deadline = time.monotonic() + START_S
        connection: socket.socket | None = None
        while time.monotonic() < deadline and self.is_alive:
            if connection is None:
                with suppress(OSError):  # not listening yet
                    connection = socket.create_connection((LOOPBACK, self.port), POLL_S + 1)
            if connection and self.folder.log.read_bytes().count(ACCEPTED) > self.clients:
                self.clients += 1
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            time.sleep(POLL_S)
        if connection:
            connection.close()
        raise WorkerError(
            "ggml-rpc-server does not run" + self.last_lines(),
            hint="`decant doctor` checks the build",
        )

    def last_lines(self) -> str:
        lines = self.folder.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""

    def stop(self) -> None:
        """Kill it, and remove its folder; nothing that it holds would be missed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.remove()


class RpcServers:
    """All that run, of which at most one works for nobody: it is there for who comes next."""

    def __init__(self, spec: RpcSpec, toolchain: Toolchain) -> None:
        """Start none yet."""
        self.spec, self.toolchain = spec, toolchain
        self.lock = threading.Lock()
        self.idle: RpcServer | None = None
        self.all: set[RpcServer] = set()
        self.is_over = False

    def take(self) -> tuple[RpcServer, socket.socket]:
        """One that works for nobody else, and a connection to it. Raises WorkerError."""
        with self.lock:
            server, self.idle = self.idle, None
        if server is not None and not server.is_alive:
            self.drop(server)
            server = None
        if server is None:
            with self.lock:
                if self.is_over:
                    raise WorkerError("the worker is ending")
                server = RpcServer(self.spec, self.toolchain)
                self.all.add(server)
        try:
            return server, server.connect()
        except BaseException:
            self.drop(server)
            raise

    def give(self, server: RpcServer) -> None:
        """Take back one whose client has left."""
        with self.lock:
            if self.idle is None and not self.is_over:
                self.idle = server
                return
        self.drop(server)

    def drop(self, server: RpcServer) -> None:
        """End one."""
        with self.lock:
            if server not in self.all:
                return
            self.all.discard(server)
        server.stop()

    def stop(self) -> None:
        """End all, and start no more."""
        with self.lock:
            self.is_over = True
            servers = list(self.all)
        for server in servers:
            self.drop(server)


def free_port() -> int:
    """A port of the loopback that nobody has at the moment: ggml-rpc-server takes no 0."""
    with socket.create_server((LOOPBACK, 0)) as trial:
        port: int = trial.getsockname()[1]
    return port
