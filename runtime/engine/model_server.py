"""What answers OpenAI's routes over HTTP: an engine that was started here, or a server elsewhere.

With http.client and not httpx, which takes a third longer for a stream of short events over a Unix
socket, 40 ms to make a client and 60 ms to be imported, and reads lines without a limit.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse

from exporter.core.errors import EngineError


class ModelServer(ABC):
    """One server. Each request has a connection of its own, which leaving its block closes."""

    @abstractmethod
    def connect(self, method: str) -> HTTPConnection:
        """A connection for one request, with the time that its response may take."""

    @abstractmethod
    def headers(self) -> dict[str, str]:
        """What every request says: the key."""

    @abstractmethod
    def unreachable(self, error: Exception) -> EngineError:
        """What it means that no response came. Raises EngineDiedError when the engine is why."""

    @abstractmethod
    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """Raise EngineDiedError when the engine's process has ended, where that can be known."""

    def path_of(self, route: str) -> str:
        """The path at which it has a route."""
        return route

    @contextmanager
    def get(self, route: str) -> Iterator[HTTPResponse]:
        """The response to a GET, its head read. Raises EngineError when there is none."""
        with self.request("GET", route, None) as response:
            yield response

    @contextmanager
    def post(self, route: str, body: Mapping[str, object]) -> Iterator[HTTPResponse]:
        """The response to a POST, its head read; leaving the block breaks it off.

        Raises EngineError when there is none.
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
