"""A server of OpenAI's routes over HTTP: an engine in a child process, or a remote server.

It uses http.client and not httpx, which takes a third longer for a stream of short events over a
Unix socket, 40 ms to make a client and 60 ms to import, and reads lines without a limit.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse

from exporter.core.errors import EngineError

DYING_S = 0.5  # seconds for a process to end after it closed its sockets


class ModelServer(ABC):
    """One server. Each request uses a new connection, which leaving its block closes."""

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
        connection = None
        try:
            try:
                connection = self.connect(method)
                connection.request(method, self.path_of(route), body, headers)
                response = connection.getresponse()
            except (OSError, HTTPException) as error:
                raise self.unreachable(error) from error
            yield response
        finally:
            if connection is not None:
                connection.close()
