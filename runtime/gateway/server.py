"""Runs the gateway: listens, handles signals, and drains running requests before it exits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from exporter.core.errors import EngineError, InputError
from runtime.gateway.call import Gateway
from runtime.gateway.fault_log import Faults

HEAD_MAX = 64 << 10  # bytes
KEEP_ALIVE_S = 65  # longer than balancers keep theirs, so that the balancer closes first
FILES = 65536  # open files at once: one for an idle connection, two for a request
RESERVED = 40  # open files besides the connections
LEAST = 8  # connections, even with few files allowed
BACKLOG = 128  # connections that asyncio accepts in one turn of the event loop
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)
CUT_S = 2  # the time to tell clients that their answers were cut
LOOK_S = 1  # between looks for closed connections that are not read
TICK_S = 0.02  # between checks whether uvicorn has started
CLOSE_S = 1  # the time to close idle connections
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SWITCH_S = 0.0005
"""The longest time that a thread that parses a large body holds the interpreter. With Python's 5 ms
the event loop would wait that long after each read and write."""
READ_BLOCK = 128 << 10  # bytes
"""asyncio reads into 256 KiB and shrinks the buffer to the received bytes. Each answer that is kept
for a moment then fragments the heap: some 200 bytes are lost per request."""


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate and its key, in PEM."""

    cert: Path
    key: Path | None


@dataclass(frozen=True, slots=True)
class Ways:
    """Options of the listening socket."""

    tls: Tls | None = None
    faults: Faults | None = None
    connections: int | None = None
    """Connections at once; None derives it from the files that the process may open."""


class Protocol(H11Protocol):
    """HTTP with a time limit for each head, and with a limit of connections."""

    head_s = 15.0
    most = FILES
    deadline: asyncio.TimerHandle | None = None
    idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self.watch_head()
        if len(self.connections) > self.most:
            self.make_room()

    def make_room(self) -> None:
        """Close the connection that is idle for the longest time; if none is idle, this one."""
        others = (one for one in self.connections if one is not self and isinstance(one, Protocol))
        idle = (one for one in others if one.is_idle)
        oldest = min(idle, key=lambda one: one.idle_since, default=None)
        if oldest is None:
            self.transport.write(FULL)
        self.connections.discard(oldest or self)  # before `connection_lost` is called
        (oldest or self).transport.close()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        was_idle = self.is_idle
        super().data_received(data)
        if was_idle and self.is_idle:  # an incomplete head, or the next one
            self.watch_head()

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def watch_head(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.head_s, self.end_idle)

    def end_idle(self) -> None:
        self.deadline = None
        if self.is_idle and self.timeout_keep_alive_task is None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        # uvicorn's timer would keep a reset connection's objects alive
        for timer in (self.deadline, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: `Ending` handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises EngineError for a taken address, InputError for a wrong one."""
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only on sockets whose protocol is given as TCP
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(
            f"{host!r} is not an address: {error.strerror}", hint="example: --host 127.0.0.1"
        ) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        taken = error.errno == errno.EADDRINUSE
        what = (
            "is taken: another server listens there"
            if taken
            else f"cannot be used: {error.strerror}"
        )
        raise EngineError(
            f"{host}:{port} {what}", hint="another port: --port N; --port 0 takes any that is free"
        ) from error
    return found


def url_of(listener: socket.socket, host: str, *, has_tls: bool) -> str:
    """The server's URL on this machine."""
    place = host.strip("[]")
    if place in ("0.0.0.0", "::"):  # noqa: S104 - it is compared, not bound
        place = "127.0.0.1" if place == "0.0.0.0" else "::1"  # noqa: S104
    name = f"[{place}]" if ":" in place else place
    return f"{'https' if has_tls else 'http'}://{name}:{listener.getsockname()[1]}"


def allow_many_files() -> None:
    """Raise the limit of open files as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_max() -> int:
    """Connections at once: half the open files, because a request needs a second one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES if soft == resource.RLIM_INFINITY else max(LEAST, (soft - RESERVED) // 2)


async def serve(
    gateway: Gateway,
    app: ASGIApp,
    listener: socket.socket,
    ways: Ways | None = None,
    beside: Callable[[], Any] | None = None,
) -> int:
    """Serve until a signal ends the server; returns the exit code.

    beside: makes a coroutine that runs as long as the server does.
    """
    ways = ways or Ways()
    tls = ways.tls
    sys.setswitchinterval(SWITCH_S)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    most = connections_max() if ways.connections is None else ways.connections
    config = uvicorn.Config(
        app,
        http=type("Timed", (Protocol,), {"head_s": gateway.settings.head_s, "most": most}),
        backlog=BACKLOG,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        h11_max_incomplete_event_size=HEAD_MAX,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    server = Server(config)
    ending = Ending(gateway, server)
    loop = asyncio.get_running_loop()
    if ways.faults is not None:
        loop.set_exception_handler(ways.faults.of_loop)
    if tls is not None:  # asyncio's default is 60 s, in which the connection is not counted
        limits = {"ssl_handshake_timeout": gateway.settings.head_s}
        if sys.version_info >= (3, 11):  # else a silent client's connection closes after 30 s
            limits["ssl_shutdown_timeout"] = CLOSE_S
        limited = partial(loop.create_server, **limits)
        loop.create_server = limited  # type: ignore[method-assign]
    for number in SIGNALS:
        loop.add_signal_handler(number, ending.on_signal, number)
    chores = [asyncio.ensure_future(abort_unread(server, gateway.settings.stall_s))]
    chores += [asyncio.ensure_future(beside())] if beside else []
    try:
        await server.serve([listener])
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        for chore in chores:
            chore.cancel()
        await asyncio.wait(chores)
    return ending.code


async def abort_unread(server: uvicorn.Server, limit_s: float) -> None:
    """Abort closed connections whose clients do not read what is left; runs until cancelled.

    asyncio closes a connection when all is sent, which may be never.
    """
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        now, connections = time.monotonic(), list(server.server_state.connections)
        closing = [one for one in connections if one.transport.is_closing()]
        since = {one: since.get(one, now) for one in closing}
        for one, began in since.items():
            if now - began > limit_s:
                one.transport.abort()


class Ending:
    """Handles signals: the first lets running answers finish, the second ends at once."""

    def __init__(self, gateway: Gateway, server: uvicorn.Server) -> None:
        self.gateway, self.server = gateway, server
        self.code = 0
        self.draining: asyncio.Task[None] | None = None

    def on_signal(self, number: int) -> None:
        if self.draining is None:
            self.gateway.is_leaving = True
            linger_s = self.gateway.settings.linger_s if number == signal.SIGTERM else 0
            self.draining = asyncio.get_running_loop().create_task(self.drain(linger_s))
        elif number == signal.SIGINT or self.gateway.is_leaving:
            self.code = 128 + number
            self.gateway.pool.kill()
            self.server.force_exit = self.server.should_exit = True

    async def drain(self, linger_s: float) -> None:
        """Refuse new requests, let answers finish within `grace_s`, cut the rest."""
        gateway = self.gateway
        await asyncio.sleep(linger_s)
        gateway.is_draining = True
        await self.until_done(gateway.settings.grace_s)
        for call, work in list(gateway.calls.items()):
            call.was_cut = "the server has shut down before the answer was complete"
            work.cancel()
        await self.until_done(CUT_S)
        while not self.server.started:  # noqa: ASYNC110 - uvicorn signals it in no other way
            await asyncio.sleep(TICK_S)  # while it starts, `should_exit` would close nothing
        self.server.should_exit = True

    async def until_done(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while works := set(self.gateway.calls.values()):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not (await asyncio.wait(works, timeout=left_s))[0]:
                return
            await asyncio.sleep(0)  # let the handlers remove them from `calls`
