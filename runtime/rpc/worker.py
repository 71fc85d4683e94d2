"""A machine that computes layers for a model whose head is elsewhere.

The worker listens on one port, looks at the first bytes of a connection, answers ASK (which
llama.cpp, how much memory) and relays HELLO, llama.cpp's RPC protocol, to a ggml-rpc-server on the
loopback. A relay, because the alternatives are worse. ggml-rpc-server cannot say its commit, and
cannot be handed a socket that is accepted already. A second port for the question would have to go
through every tunnel and firewall, too. And one ggml-rpc-server serves one client at a time: the
second model of a head would wait for ever, as would all when a head vanishes without a word. Here
each connection has its own, and one that crashes takes no other model along. What it costs is one
more copy through the loopback, which next to a network and ssh is little (docs/scale.md).

The protocol has no key and no encryption, and its parser has had holes: whoever reaches the port
owns the account. Hence the loopback, and a tunnel.
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
"""At once; a head has one a model, and a ggml-rpc-server for it."""
FIRST_BYTES_S = 10.0
ACCEPT_S = 0.2  # between looks at whether it is over


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Where a worker listens and how it computes."""

    host: str
    port: int
    """0 takes any."""
    rpc: RpcSpec
    exposed: bool = False
    """Whether others than this machine may reach it."""


class Worker:
    """A worker that listens inside the `with` block; nothing of it runs after."""

    def __init__(self, spec: WorkerSpec, toolchain: Toolchain, *, report: Report = silent) -> None:
        """Store what to start. Raises InputError for a host that others reach, unless allowed."""
        refuse_exposed(spec)
        self.spec, self.toolchain, self.report = spec, toolchain, report
        self.servers = RpcServers(spec.rpc, toolchain)
        self.room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.free: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self.listener = listen(self.spec)
        try:
            self.free = self.free_nbytes()  # what does not run is told now, not by a model
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
        """Of each device that computes. Raises WorkerError."""
        server, connection = self.servers.take()
        with connection:
            try:
                greet(connection)
                free = memory(connection)
            except (OSError, ValueError) as error:
                self.servers.drop(server)
                raise WorkerError(
                    f"ggml-rpc-server does not answer: {error}", hint="`decant doctor` looks at it"
                ) from error
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # it has hung up, and waits for the next
        self.servers.give(server)
        if self.toolchain.info["backend"] in ("cpu", "metal"):  # it says what there is, used or not
            return tuple(min(nbytes, available_nbytes()) for nbytes in free)
        return free

    def accept(self) -> None:
        """Give every connection a thread, until the listener is closed."""
        while not self.servers.is_over:
            try:
                head, _ = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:  # it was gone before it was here, or there are too many
                time.sleep(ACCEPT_S)
                continue
            if self.room.acquire(blocking=False):
                threading.Thread(target=self.serve, args=(head,), daemon=True).start()
            else:
                head.close()
                self.report(Warn(f"more than {CONNECTIONS_MAX} connections: one is turned away"))

    def serve(self, head: socket.socket) -> None:
        """See what a connection wants, and do it to its end."""
        try:
            with head, suppress(OSError, ValueError):  # it may go at any time
                head.settimeout(FIRST_BYTES_S)
                self.answer_for(head.recv(1))(head)
        except WorkerError as error:
            self.report(Warn(error.message))
        finally:
            self.room.release()

    def answer_for(self, first: bytes) -> Callable[[socket.socket], None]:
        """What a connection's first byte asks for."""
        answers = {ASK[:1]: self.tell, bytes([HELLO]): self.compute}
        return answers.get(first, socket.socket.close)  # a browser, say

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
        """Have a ggml-rpc-server of its own work for this head. Raises WorkerError."""
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
        """Hang up on every head; `ggml-rpc-server`s and threads end."""
        self.servers.stop()
        if self.accepting.is_alive():
            self.accepting.join()
        self.listener.close()


def refuse_exposed(spec: WorkerSpec) -> None:
    """InputError for an address that other machines reach, unless the user knows."""
    if not spec.exposed and not is_loopback(spec.host):
        raise InputError(
            f"--host {spec.host} is open to other machines, and the RPC protocol has no key and"
            " no encryption: whoever reaches the port can take over this account",
            hint="leave --host out and use a tunnel; inside a network of your own: --i-know",
        )


def listen(spec: WorkerSpec) -> socket.socket:
    """Raises EngineError for an address that cannot be had."""
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
