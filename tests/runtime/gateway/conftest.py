"""Gateways to ask: the real command in a process of its own, over the demo's models."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from tests.support.changing_server import Server, Test, base
from tests.support.fake_pool import running
from tests.support.forked import popen
from tests.support.processes import wait_until
from tests.support.tiny_lora import write_tiny_lora

CHECKOUT = Path(__file__).parents[3]
JSON = {"Content-Type": "application/json"}
MODELS = ("base", "base:pirate", "base:liar")


@dataclass
class Served:
    """A running `decant serve`."""

    process: subprocess.Popen[str]
    url: str
    models: list[str]
    log: Path
    headers: dict[str, str] = field(default_factory=dict)
    source: str = ""
    """The address that requests come from; any where this is empty."""

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def connect(self, timeout_s: float = 60) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout_s, self.here)

    def open(self, timeout_s: float = 60) -> socket.socket:
        """A connection on which nothing has been said."""
        return socket.create_connection(("127.0.0.1", self.port), timeout_s, self.here)

    @property
    def here(self) -> tuple[str, int] | None:
        return (self.source, 0) if self.source else None

    @contextmanager
    def send(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """The response, as long as the block lasts."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = (JSON if body is not None else {}) | self.headers | (headers or {})
        with closing(self.connect()) as connection:
            connection.request(method, path, data, given)
            yield connection.getresponse()

    def ask(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        with self.send("POST", path, body, headers) as response:
            return response.status, json.loads(response.read() or b"null")

    def get(self, path: str) -> tuple[int, Any]:
        with self.send("GET", path) as response:
            text = response.read()
            is_json = "json" in (response.getheader("Content-Type") or "")
            return response.status, json.loads(text) if is_json else text.decode()

    def says(self, model: str, prompt: str, **settings: object) -> str:
        """The greedy answer to a prompt."""
        status, body = self.ask("/v1/chat/completions", chat(model, prompt, **settings))
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        _, text = self.get("/metrics")
        # a misspelt one would be 0 for ever
        assert re.search(rf"^(# TYPE )?{name}[ {{]", text, re.MULTILINE), name
        total = 0.0
        for line in text.splitlines():
            is_it = line.startswith((f"{name}{{", f"{name} "))
            if is_it and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def wait_until_ready(self) -> None:
        assert until(lambda: self.get("/readyz")[0] == 200)

    def children(self) -> list[int]:
        """The engines' process numbers."""
        return children_of(self.process.pid)


def chat(model: str, prompt: str, **settings: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **settings}


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        if f"PPid:\t{pid}" in lines and not any(line == "State:\tZ (zombie)" for line in lines):
            found.append(int(status.parent.name))
    return sorted(found)


def until(fact: Callable[[], object], timeout_s: float = 20) -> bool:
    """Whether something becomes true in time."""
    return wait_until(fact, timeout_s)


@contextmanager
def serving(tmp: Path, *arguments: object, env: dict[str, str] | None = None) -> Iterator[Served]:
    """`decant serve` with these arguments on a port of its own; ended after the block."""
    log = tmp / f"serve-{time.monotonic_ns()}.log"
    argv = [sys.executable, "-m", "exporter", "serve", "--port", "0", "--json", "--quiet"]
    with log.open("w") as err:
        process = popen(
            [*argv, *map(str, arguments)],
            env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=err, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        while line := process.stdout.readline():
            text += line
            if line.startswith("}"):
                break
        assert text, log.read_text()
        told = json.loads(text)
        yield Served(process, told["url"], told["models"], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


@contextmanager
def asking(served: Served, path: str, body: object) -> Iterator[socket.socket]:
    """A request that has been sent, and whose answer is not read."""
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", served.port))) as connection:
        connection.sendall(head.encode() + text)
        yield connection


def used(served: Served) -> float:
    return served.metric("decant_slots_used")


@pytest.fixture(scope="session")
def voices(demo_base, pirate_lora, liar_lora) -> tuple[object, ...]:
    """The demo's base with two adapters, as arguments of `decant serve`."""
    return (demo_base, "--adapter", f"pirate={pirate_lora}", "--adapter", f"liar={liar_lora}")


@pytest.fixture(scope="session")
def served(voices, tmp_path_factory) -> Iterator[Served]:
    """A gateway over the demo's base and two adapters, with four slots. Leave it as it was."""
    with serving(tmp_path_factory.mktemp("served"), *voices, "--parallel", "4") as found:
        found.wait_until_ready()
        yield found


@pytest.fixture
def serve(tmp_path) -> Callable[..., EnginePool]:
    """Run a test over bases `m`, and over a folder with the adapters a, b and c."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write_tiny_lora(folder / f"{name}.gguf", number)

    def run(test: Test, *names: str, how: dict[str, object] | None = None, **settings: Any) -> Any:
        models = [base(tmp_path, name, **(how or {})) for name in names or ("m",)]

        async def begin(pool: EnginePool, catalog: Catalog) -> None:
            await test(Server(Gateway(pool.settings, catalog, pool), folder))

        return running(begin, tmp_path, *models, **({"adapter_folders": (folder,)} | settings))

    return run
