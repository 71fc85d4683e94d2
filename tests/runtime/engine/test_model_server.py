"""Requests to one server share connections, if it is near and answers are read to their ends."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exporter.core.errors import EngineError
from runtime.engine.model_server import Kept, ModelServer
from runtime.engine.openai_client import ask_json


class Handler(BaseHTTPRequestHandler):
    """Answers with the number of connections so far; hangs up as the path says."""

    protocol_version = "HTTP/1.1"
    server: Counted

    def setup(self) -> None:
        super().setup()
        self.server.count += 1

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.path == "/dies":
            self.close_connection = True
            return
        body = b'{"connection": %d}' % self.server.count
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/hangs-up":  # without saying so
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Write nothing."""


class Counted(ThreadingHTTPServer):
    count = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []


class Near(ModelServer):
    """A server of this machine."""

    def __init__(self, port: int) -> None:
        self.port, self.kept = port, Kept()

    def connect(self, method: str) -> http.client.HTTPConnection:
        del method
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)

    def headers(self) -> dict[str, str]:
        return {}

    def unreachable(self, error: Exception) -> EngineError:
        return EngineError(f"no answer: {error}")

    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """It never is."""


@pytest.fixture
def counted() -> Iterator[Counted]:
    with Counted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def near(counted) -> Iterator[Near]:
    server = Near(counted.server_address[1])
    yield server
    server.close_kept()


def test_requests_use_one_connection(near):
    assert [ask_json(near, "/", {})["connection"] for _ in range(3)] == [1, 1, 1]


def test_a_request_is_sent_again_if_the_server_closed_the_kept_connection(near, counted):
    first = ask_json(near, "/hangs-up", {})

    again = ask_json(near, "/", {})

    assert (first["connection"], again["connection"]) == (1, 2)
    assert counted.asked == ["/hangs-up", "/"]


def test_a_request_that_no_new_connection_answers_is_an_error(near, counted):
    ask_json(near, "/", {})

    with pytest.raises(EngineError, match="no answer"):
        ask_json(near, "/dies", {})

    assert counted.asked == ["/", "/dies", "/dies"]


def test_an_answer_that_is_not_read_to_its_end_closes_its_connection(near):
    with near.post("/", {}) as response:
        assert response.read(3) == b'{"c'

    assert ask_json(near, "/", {})["connection"] == 2


def test_a_server_that_keeps_no_connections_gets_new_ones(near):
    near.close_kept()

    assert [ask_json(near, "/", {})["connection"] for _ in range(2)] == [1, 2]
