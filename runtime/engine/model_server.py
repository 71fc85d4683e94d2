"""A server of OpenAI's routes over HTTP: an engine in a child process, or a remote server.

It uses http.client and not httpx, which takes a third longer for a stream of short events over a
Unix socket, 40 ms to make a client and 60 ms to import, and reads lines without a limit.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from queue import Empty, SimpleQueue

from exporter.core.errors import EngineError

DYING_S = 0.5  # seconds for a process to end after it closed its sockets
Kept = SimpleQueue[HTTPConnection]
"""Connections on which all responses were read to their ends."""


class ModelServer(ABC):
    """One server. Leaving a request's block closes its connection, unless it is kept."""

    kept: Kept | None = None
    """The connections that further POSTs use; None closes each. Only for a server to which a
    request may be sent again if it has closed the connection meanwhile."""

    @abstractmethod
    def connect(self, method: str) -> HTTPConnection:
        """A connection for one request, with its timeout."""

    @abstractmethod
    def headers(self) -> dict[str, str]:
        """The headers of every request, such as the key."""

    @abstractmethod
    def unreachable(self, error: Exception) -> EngineError:
        """The error for a missing response. Raises EngineDiedError if the engine has died."""

    @abstractmethod
    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """Raise EngineDiedError if the engine's process has ended and is a child of this one."""

    def path_of(self, route: str) -> str:
        """The path of a route on this server."""
        return route

    @contextmanager
    def get(self, route: str) -> Iterator[HTTPResponse]:
        """Send a GET and yield the response, its head read. Raises EngineError without one."""
        with self.request("GET", route, None) as response:
            yield response

    @contextmanager
    def post(self, route: str, body: Mapping[str, object]) -> Iterator[HTTPResponse]:
        """Send a POST and yield the response, its head read; leaving the block aborts it.

        Raises EngineError if no response comes.
        """
        with self.request("POST", route, json.dumps(body).encode()) as response:
            yield response

    @contextmanager
    def request(self, method: str, route: str, body: bytes | None) -> Iterator[HTTPResponse]:
        headers = self.headers() | ({"Content-Type": "application/json"} if body else {})
        kept = self.kept if method == "POST" else None
        try:
            connection, response = self.sent(kept, method, route, body, headers)
        except (OSError, HTTPException) as error:
            raise self.unreachable(error) from error
        try:
            yield response
        finally:
            is_whole = response.isclosed() and not response.will_close
            if kept is not None and kept is self.kept and is_whole:
                kept.put(connection)
            else:
                connection.close()

    def sent(
        self,
        kept: Kept | None,
        method: str,
        route: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """A connection, and the response on it. Raises OSError and HTTPException."""
        while True:
            used = taken(kept)
            connection = used or self.connect(method)
            try:
                connection.request(method, self.path_of(route), body, dict(headers))
                return connection, connection.getresponse()
            except ConnectionError:
                connection.close()
                if used is None:  # else the server may just have closed an idle connection
                    raise
            except BaseException:
                connection.close()
                raise

    def close_kept(self) -> None:
        """Close the kept connections, and keep none from now on."""
        kept, self.kept = self.kept, None
        while kept is not None and not kept.empty():
            kept.get().close()


def taken(kept: Kept | None) -> HTTPConnection | None:
    """A kept connection, for one request; None if there is none."""
    with suppress(Empty):
        return kept.get_nowait() if kept is not None else None
    return None
