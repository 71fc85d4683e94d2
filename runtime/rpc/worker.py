"""A worker: computes layers of a model whose other layers are computed on another machine.

The worker listens on one port, reads the first byte of a connection, answers ASK (which llama.cpp,
how much memory) and relays HELLO, llama.cpp's RPC protocol, to a ggml-rpc-server on the loopback.
It relays because the alternatives are worse. ggml-rpc-server cannot report its commit, nor take
over an accepted socket. A second port for ASK would need a second tunnel and firewall rule. And one
ggml-rpc-server serves one client at a time: a second model would wait for ever, and so would every
client after one that vanished. Here each connection has a server process, and a crash affects
one model only. The cost is one more copy through the loopback, which is small beside a network and
ssh (docs/scale.md).

The protocol has no key and no encryption, and its parser has had security holes: any client that
reaches the port can take over the account. Hence the loopback, and a tunnel.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from typing_extensions import Self

from exporter.core.errors import EngineError, InputError, WorkerError
from exporter.core.events import Report, Warn, silent
from exporter.core.machine import available_nbytes
from exporter.core.version import own_version
from exporter.llamacpp.toolchain import Toolchain
from runtime.process.network import is_loopback
from runtime.rpc.protocol import ASK, HELLO, HELLO_HEAD, HELLO_REQUEST, greet, memory, received
from runtime.rpc.relay import keep_alive, relay
from runtime.rpc.rpc_server import RpcServers, RpcSpec

CONNECTIONS_MAX = 32
"""Simultaneous connections; each model has one, with a ggml-rpc-server for it."""
FIRST_BYTES_S = 10.0  # seconds for a connection's first bytes
ACCEPT_S = 0.2  # seconds between looks at whether the worker is stopping


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The address a worker listens at, and how it computes."""

    host: str
    port: int
    """The TCP port; 0 picks a free one."""
    rpc: RpcSpec
    exposed: bool = False
    """Whether other machines may reach it."""


class Worker:
    """A worker that listens inside the `with` block; leaving it ends all its processes."""

    def __init__(self, spec: WorkerSpec, toolchain: Toolchain, *, report: Report = silent) -> None:
        """Store the settings. Raises InputError for an exposed host, unless allowed."""
        refuse_exposed(spec)
        self.spec, self.toolchain, self.report = spec, toolchain, report
        self.servers = RpcServers(spec.rpc, toolchain)
        self.room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.free: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self.listener = listen(self.spec)
        try:
            self.free = self.free_nbytes()  # shows a broken build now, not when a model loads
        except BaseException:
            self.stop()
            raise
        self.accepting.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def free_nbytes(self) -> tuple[int, ...]:
        """Free bytes of each device that computes. Raises WorkerError."""
        server, connection = self.servers.take()
        with connection:
            try:
                greet(connection)
                free = memory(connection)
            except (OSError, ValueError) as error:
                self.servers.drop(server)
                raise WorkerError(
                    f"ggml-rpc-server does not answer: {error}", hint="`decant doctor` checks it"
                ) from error
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the server has hung up and waits for its next client
        self.servers.give(server)
        if self.toolchain.info["backend"] in ("cpu", "metal"):  # these report all memory as free
            return tuple(min(nbytes, available_nbytes()) for nbytes in free)
        return free

    def accept(self) -> None:
        """Serve each connection in a thread, until the listener is closed."""
        while not self.servers.is_over:
            try:
                head, _ = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:  # the client has left already, or too many files are open
                time.sleep(ACCEPT_S)
                continue
            if self.room.acquire(blocking=False):
                threading.Thread(target=self.serve, args=(head,), daemon=True).start()
            else:
                head.close()
                self.report(Warn(f"more than {CONNECTIONS_MAX} connections: one was refused"))

    def serve(self, head: socket.socket) -> None:
        """Answer one connection by its first byte, until it ends."""
        try:
            with head, suppress(OSError, ValueError):  # the client may leave at any time
                head.settimeout(FIRST_BYTES_S)
                self.answer_for(head.recv(1))(head)
        except WorkerError as error:
            self.report(Warn(error.message))
        finally:
            self.room.release()

    def answer_for(self, first: bytes) -> Callable[[socket.socket], None]:
        """The handler for a connection's first byte."""
        answers = {ASK[:1]: self.tell, bytes([HELLO]): self.compute}
        return answers.get(first, socket.socket.close)  # other clients, such as a browser

    def tell(self, head: socket.socket) -> None:
        if received(head, len(ASK) - 1) == ASK[1:]:
            facts = {
                "decant": own_version(),
                "commit": self.toolchain.info["commit"],
                "backend": self.toolchain.info["backend"],
                "threads": self.spec.rpc.threads,
                "free": self.free_nbytes(),
            }
            head.sendall(json.dumps(facts).encode() + b"\n")

    def compute(self, head: socket.socket) -> None:
        """Relay a connection to a ggml-rpc-server that serves it alone. Raises WorkerError."""
        rest = received(head, HELLO_HEAD.size + HELLO_REQUEST - 1)
        head.settimeout(None)
        keep_alive(head)
        server, connection = self.servers.take()
        with connection:
            connection.sendall(bytes([HELLO]) + rest)
            left_clean = relay(head, connection)
        if left_clean:
            self.servers.give(server)
            return
        lines = server.last_lines()
        self.servers.drop(server)
        if not self.servers.is_over:
            raise WorkerError(f"a ggml-rpc-server has ended{lines}")

    def stop(self) -> None:
        """Close every connection and end the `ggml-rpc-server`s and threads."""
        self.servers.stop()
        if self.accepting.is_alive():
            self.accepting.join()
        self.listener.close()


def refuse_exposed(spec: WorkerSpec) -> None:
    """Raise InputError for an address that other machines reach, unless --i-know is given."""
    if not spec.exposed and not is_loopback(spec.host):
        raise InputError(
            f"--host {spec.host} is open to other machines, and the RPC protocol has no key and"
            " no encryption: anyone who reaches the port can take over this account",
            hint="leave --host out and use a tunnel; inside a private network: --i-know",
        )


def listen(spec: WorkerSpec) -> socket.socket:
    """Open the listening socket. Raises EngineError for an address that cannot be bound."""
    try:
        family, *_, address = socket.getaddrinfo(
            spec.host, spec.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=CONNECTIONS_MAX)
    except OSError as error:
        raise EngineError(
            f"cannot listen at {spec.host}:{spec.port}: {error.strerror or error}",
            hint="is another worker running? --port takes another port",
        ) from error
    listener.settimeout(ACCEPT_S)
    return listener
