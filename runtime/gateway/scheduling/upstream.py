"""HTTP to one engine: sends a request, and passes the response on as it arrives.

Uses h11 instead of an HTTP client: the gateway cancels a request by half-closing the connection,
and the slot counts as used until the engine closes its side (`Reply.leave`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import h11

from runtime.engine.llama_server import Server
from runtime.gateway.api_errors import EngineGoneError, NotThereError

BLOCK = 1 << 16  # bytes
HEAD_MAX = 1 << 20  # bytes
WITHHELD = frozenset(  # hop-by-hop headers, and the engine's name
    b"server connection keep-alive proxy-authenticate proxy-authorization proxy-connection te"
    b" trailer transfer-encoding upgrade".split()
)
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Address:
    """The socket or port where an engine listens, and its key."""

    socket: Path | None
    port: int | None
    key: str


def address_of(server: Server) -> Address:
    socket = server.run_folder.socket if server.port is None else None
    return Address(socket, server.port, server.key)


class Reply:
    """The response of an engine, read as it arrives."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, http: h11.Connection
    ) -> None:
        self.reader, self.writer, self.http = reader, writer, http
        self.status = 0
        self.headers: Headers = []
        self.is_finished = False

    async def event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """The next part of the response. Raises EngineGoneError."""
        while (event := self.event_here()) is h11.NEED_DATA:
            try:
                self.http.receive_data(await self.reader.read(BLOCK))
            except (h11.RemoteProtocolError, OSError) as error:
                raise EngineGoneError from error
        return event

    def event_here(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """The next part of the bytes received so far. Raises EngineGoneError."""
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise EngineGoneError from error

    async def read_head(self) -> None:
        """Read the status and the headers. Raises EngineGoneError."""
        event = await self.event()
        while isinstance(event, h11.InformationalResponse):
            event = await self.event()
        if not isinstance(event, h11.Response):
            raise EngineGoneError
        self.status = event.status_code
        self.headers = [
            (name, value)
            for name, value in event.headers.raw_items()
            if name.lower() not in WITHHELD and not name.lower().startswith(b"access-control-")
        ]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes; each chunk holds all bytes that have arrived.

        With many streams several pieces of an answer arrive at once, and sending each of them
        alone costs more than everything else that the gateway does. Raises EngineGoneError when
        the engine ends before the body does.
        """
        while not self.is_finished:
            event = await self.event()
            parts = []
            while isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                event = self.event_here()
            if parts:
                yield b"".join(parts)
            if isinstance(event, h11.EndOfMessage):
                self.is_finished = True
            elif event is not h11.NEED_DATA:
                raise EngineGoneError

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    def header(self, name: bytes) -> bytes:
        return next((value for other, value in self.headers if other.lower() == name), b"")

    async def leave(self, limit_s: float) -> bool:
        """Cancel the request; returns whether the engine freed its slot within `limit_s`.

        Half-closes the connection; the engine closes its side when the slot is free.
        """
        try:
            if not self.is_finished and self.writer.can_write_eof():
                self.writer.write_eof()
                await asyncio.wait_for(self.drop_rest(), limit_s)
        except asyncio.TimeoutError:
            return False
        except OSError:
            pass  # the engine has ended, or has closed its side
        finally:
            self.close()
        return True

    async def drop_rest(self) -> None:
        while await self.reader.read(BLOCK):
            pass

    def close(self) -> None:
        self.writer.close()


async def post(address: Address, route: str, body: bytes) -> Reply:
    """Send a POST; the caller reads the head and closes. Raises NotThereError."""
    return await send(address, "POST", route, body)


async def get(address: Address, route: str) -> Reply:
    return await send(address, "GET", route, b"")


async def is_well(address: Address, route: str, limit_s: float) -> bool:
    """Whether an engine answers in time, with any status; True for one that has ended."""
    reply = None
    try:
        reply = await get(address, route)
        await asyncio.wait_for(reply.read_head(), limit_s)
    except EngineGoneError:
        return True
    except asyncio.TimeoutError:
        return False
    finally:
        if reply is not None:
            reply.close()
    return True


async def send(address: Address, method: str, route: str, body: bytes) -> Reply:
    """Send a request without waiting for the response. Raises NotThereError."""
    try:
        if address.socket is not None:
            reader, writer = await asyncio.open_unix_connection(str(address.socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    except OSError as error:
        raise NotThereError from error
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
    headers = [
        ("Host", "localhost"),
        ("Authorization", f"Bearer {address.key}"),
        ("Connection", "close"),
    ]
    if method == "POST":
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    parts = [http.send(h11.Request(method=method, target=route, headers=headers))]
    if body:
        parts.append(http.send(h11.Data(data=body)))
    parts.append(http.send(h11.EndOfMessage()))
    writer.write(b"".join(part for part in parts if part))
    return Reply(reader, writer, http)
