"""Pool of ggml-rpc-servers on loopback ports: starts, connects, reuses and stops them."""

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
START_S = 60  # a GPU's first use takes long
POLL_S = 0.005  # seconds between looks while a server starts
STOP_S = 5  # seconds for a server to end before it is killed
ACCEPTED = b"Accepted client connection"  # logged and flushed at each connection


@dataclass(frozen=True, slots=True)
class RpcSpec:
    """The threads and the cache of a worker's computation."""

    threads: int
    cache: Path | None = None
    """A folder that keeps large tensors, so that each is sent once."""


class RpcServer:
    """A ggml-rpc-server, which serves one client at a time.

    `runtime/process/exit_with_parent.py` runs it and ends it when this process's end of a pipe
    closes, as the server itself reads no input. It gets a scrubbed environment.
    """

    def __init__(self, spec: RpcSpec, toolchain: Toolchain) -> None:
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
        """Connect and wait until the server accepts. Raises WorkerError if it ends or is silent.

        The log tells whether this server accepted: another process may have taken the port.
        """
        deadline = time.monotonic() + START_S
        connection: socket.socket | None = None
        while time.monotonic() < deadline and self.is_alive:
            if connection is None:
                with suppress(OSError):  # it does not listen yet
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
        """End the server, by force after STOP_S, and remove its folder."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.remove()


class RpcServers:
    """The running servers; at most one of them is idle and kept for the next client."""

    def __init__(self, spec: RpcSpec, toolchain: Toolchain) -> None:
        self.spec, self.toolchain = spec, toolchain
        self.lock = threading.Lock()
        self.idle: RpcServer | None = None
        self.all: set[RpcServer] = set()
        self.is_over = False

    def take(self) -> tuple[RpcServer, socket.socket]:
        """The idle server or a new one, and a connection to it. Raises WorkerError."""
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
        """Return a server whose client has left: it becomes the idle one, or is stopped."""
        with self.lock:
            if self.idle is None and not self.is_over:
                self.idle = server
                return
        self.drop(server)

    def drop(self, server: RpcServer) -> None:
        """Stop one server, once."""
        with self.lock:
            if server not in self.all:
                return
            self.all.discard(server)
        server.stop()

    def stop(self) -> None:
        """Stop all servers and start no more."""
        with self.lock:
            self.is_over = True
            servers = list(self.all)
        for server in servers:
            self.drop(server)


def free_port() -> int:
    """A loopback port that is free at the moment; ggml-rpc-server does not accept port 0."""
    with socket.create_server((LOOPBACK, 0)) as trial:
        port: int = trial.getsockname()[1]
    return port
