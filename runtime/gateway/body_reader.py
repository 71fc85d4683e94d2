"""Reads requests' bodies within limits, and parses large ones in threads."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.types import Receive, Scope

from runtime.gateway.api_errors import ApiError, ClientGoneError, bad_request, unavailable
from runtime.gateway.body import parse
from runtime.gateway.request_limits import refuse_too_many
from runtime.gateway.scheduling.request_queue import too_many
from runtime.gateway.settings import Settings

SMALL = 64 << 10  # bytes; parsed in a millisecond
AT_ONCE = 2  # large bodies that are processed at the same time, at most one of each client
HELD_MAX = 512 << 20  # bytes of all bodies in memory
CLIENT_MAX = 64 << 20  # bytes of one client's bodies in memory
MARKS = (b",", b"[", b"{")
"""Nearly every value in JSON follows one of these."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Taken:
    """A parsed body, with its size in bytes."""

    body: dict[str, Any]
    nbytes: int


class Bodies:
    """All bodies that are in memory."""

    def __init__(self, settings: Settings, *, sees: bool) -> None:
        """Begin empty. sees: whether a model takes images, which allows larger bodies."""
        self.settings = settings
        self.most = settings.limits.media_body if sees else settings.limits.body
        self.held: Counter[str] = Counter()
        """Bytes in memory, by client."""
        self.turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """The locks by client: one large body of a client is processed at a time."""
        self.threads = ThreadPoolExecutor(AT_ONCE, "bodies")

    @asynccontextmanager
    async def take(self, scope: Scope, receive: Receive, client: str) -> AsyncIterator[Taken]:
        """Read and parse a body, which counts as the client's inside the block.

        Raises ApiError for a body that is too large, too slow, not a JSON object, or above a
        limit, and ClientGoneError.
        """
        self.refuse_announced(scope)
        parts: list[bytes] = []
        try:
            await self.read(receive, parts, client)
            nbytes = sum(map(len, parts))
            found = await self.beside(nbytes, lambda: self.parse_within(b"".join(parts)), client)
            yield Taken(found, nbytes)
        finally:
            self.held[client] -= sum(map(len, parts))
            if not self.held[client]:
                del self.held[client]

    def refuse_announced(self, scope: Scope) -> None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced[:20]) > self.most:
            raise self.too_large()

    async def read(self, receive: Receive, parts: list[bytes], client: str) -> None:
        """Gather the body within the time limit. Raises ApiError and ClientGoneError."""
        try:
            await asyncio.wait_for(self.gather(receive, parts, client), self.settings.body_s)
        except asyncio.TimeoutError:
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body was not complete after {self.settings.body_s:g} s",
                headers=((b"connection", b"close"),),
            ) from None

    async def gather(self, receive: Receive, parts: list[bytes], client: str) -> None:
        """Append the body's bytes to `parts`. Raises ApiError and ClientGoneError."""
        nbytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            nbytes += len(parts[-1])
            self.held[client] += len(parts[-1])
            if nbytes > self.most:
                raise self.too_large()
            if self.held[client] > max(CLIENT_MAX, self.most):
                raise too_many(f"this client's requests already hold {self.held[client]} bytes")
            if self.held.total() > HELD_MAX:
                raise unavailable("the server has no memory for more request bodies")
            more = message.get("more_body", False)

    def too_large(self) -> ApiError:
        return ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {self.most} bytes",
            headers=((b"connection", b"close"),),
        )

    def parse_within(self, body: bytes) -> dict[str, Any]:
        """The JSON object in a body. Raises ApiError; too many values are not even parsed."""
        limits = self.settings.limits
        values = sum(map(body.count, MARKS))
        if values > limits.values:
            raise bad_request(
                f"the body has about {values} values, and this server takes {limits.values}",
                code="too_many",
            )
        found = parse(body)
        refuse_too_many(found, limits)
        return found

    async def beside(self, nbytes: int, work: Callable[[], Result], client: str) -> Result:
        """The result of `work`; for a large body it runs in a thread, not on the event loop.

        One client's large bodies take one thread, so that another is free for other clients.
        """
        if nbytes <= SMALL:
            return work()
        async with self.turns.setdefault(client, asyncio.Lock()):
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
