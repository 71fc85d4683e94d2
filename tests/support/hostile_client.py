"""A hostile client: sends requests that once blocked the server, and leaves before the answers.

It runs in a separate process, so that it does not delay the clients that are measured.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

HERE = ("127.0.0.2", 0)
"""The client's address."""
STAYS_S = 1.0
"""The longest time that it waits for an answer."""
PAUSE_S = 0.2
"""The longest pause between two requests: their content does harm, not their number."""
UNREAD_MAX = 8  # streams that it has requested and does not read
Body = dict[str, object]
MANY = {f"p{n}": {"type": "object", "properties": {"a": {}, "b": {}}} for n in range(4000)}
WIDE = {f"p{n}": {"type": "string"} for n in range(250)}
"""About as many properties as an object in a schema may have."""
SCHEMA: Body = {"type": "object", "properties": WIDE, "required": list(WIDE)}
OBJECT_BOMB = '{"type":"object","properties":{"a":' * 400 + "{}" + "}}" * 400
BODIES: dict[str, tuple[str, Body]] = {
    "empty prompts": ("/v1/completions", {"prompt": [""] * 350_000}),
    "prompts": ("/v1/completions", {"prompt": ["tell me"] * 250, "max_tokens": 40}),
    "prompts streamed": (
        "/v1/completions", {"prompt": ["tell me"] * 250, "max_tokens": 40, "stream": True}
    ),
    "answers": ("/v1/completions", {"prompt": "tell me", "max_tokens": 400, "n": 128}),
    "token ids": ("/v1/completions", {"prompt": [1] * 400_000}),
    "inputs": ("/v1/embeddings", {"input": ["a"] * 250_000}),
    "inputs within the limit": ("/v1/embeddings", {"input": ["tell me " * 40] * 2000}),
    "inputs for Ollama": ("/api/embed", {"input": ["a"] * 250_000}),
    "breakers": ("/v1/completions", {"prompt": "a", "dry_sequence_breakers": ["w"] * 50_000}),
    "grammar": ("/v1/completions", {"prompt": "a", "grammar": "root ::= " + '"a" | ' * 100_000}),
    "grammar within the limit": (
        "/v1/completions", {"prompt": "a", "grammar": "root ::= " + '"a" | ' * 10_000 + '"b"'}
    ),
    "schema": ("/completion", {"prompt": "a", "json_schema": {"properties": MANY}}),
    "schema within the limit": ("/completion", {"prompt": "a", "json_schema": SCHEMA}),
    "deep schema": ("/completion", {"prompt": "a", "json_schema": json.loads(OBJECT_BOMB)}),
    "words": ("/tokenize", {"content": "word " * 300_000}),
    "one word": ("/tokenize", {"content": "a" * 90_000}),
    "long prompt": ("/v1/completions", {"prompt": "word " * 300_000}),
    "name with a newline": ("/v1/completions", {"model": "base:pirate@0.5\n", "prompt": "a"}),
    "name with many digits": (
        "/v1/completions", {"model": "base:pirate@0." + "1" * 70_000, "prompt": "a"}
    ),
}  # fmt: skip
"""Routes and bodies, by the part of the request that is costly."""


def sent(route: str, data: bytes, nbytes: int | None = None) -> bytes:
    """A request with this body; `nbytes` is its Content-Length, by default the true one."""
    head = (
        f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data) if nbytes is None else nbytes}\r\n\r\n"
    )
    return head.encode() + data


@dataclass
class Hostile:
    """The client of a server on this port, and the counts of its requests."""

    port: int
    only: str = ""
    """The only kind of request that it sends; empty for all kinds."""
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    """The answers that it waited for, such as `400 grammar`."""
    unread: list[socket.socket] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """The answers with status 500, which no request may cause."""
        return [told for told in self.statuses if told.startswith("500")]

    @contextmanager
    def attacking(self, seed: int = 7) -> Iterator[None]:
        """Run the client in a process inside the block, then add its counts."""
        ways = multiprocessing.get_context("spawn")
        stop, counts = ways.Event(), ways.SimpleQueue()
        process = ways.Process(target=attack, args=(self.port, self.only, seed, stop, counts))
        process.start()
        try:
            yield
        finally:
            stop.set()
            process.join()
            assert process.exitcode == 0
            done, statuses = counts.get()
            self.done.update(done)
            self.statuses.update(statuses)

    def attack(self, dice: random.Random, stop: Event) -> None:
        kinds = self.kinds()
        names = [self.only] if self.only else list(kinds)
        try:
            while not stop.wait(dice.random() * PAUSE_S):
                name = dice.choice(names)
                with suppress(OSError):
                    kinds[name](dice)
                self.done[name] += 1
        finally:
            for connection in self.unread:
                connection.close()
            self.unread.clear()

    def kinds(self) -> dict[str, Callable[[random.Random], None]]:
        """The functions that send each kind of request, by name."""
        return {
            **{name: partial(self.asking, name, asked) for name, asked in self.made().items()},
            "new scale": self.new_scale,
            "half a request": self.half,
            "unread answer": self.not_reading,
            "idle connections": self.idle,
        }

    def made(self) -> dict[str, bytes]:
        """The requests of BODIES as bytes, by name."""
        return {
            name: sent(route, json.dumps({"model": "base", **body}).encode())
            for name, (route, body) in BODIES.items()
        } | {"16 MiB": sent("/v1/completions", (b"[" + b"[]," * (16 << 20))[: 16 << 20])}

    def asking(self, name: str, data: bytes, dice: random.Random) -> None:
        """Send a request, and leave before most answers could arrive."""
        with closing(self.connect()) as connection:
            connection.sendall(data)
            self.hear(connection, name, dice.random() * STAYS_S)

    def hear(self, connection: socket.socket, name: str, seconds: float) -> None:
        connection.settimeout(max(0.01, seconds))
        status = connection.recv(64).split(b" ")[1:2]
        if status:
            self.statuses[f"{status[0].decode()} {name}"] += 1

    def new_scale(self, dice: random.Random) -> None:
        """Request a new scale, on the route where each scale needs a separate engine."""
        body = {
            "model": f"base:pirate@{dice.random():.6f}",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
        }
        self.asking("new scale", sent("/v1/messages", json.dumps(body).encode()), dice)

    def half(self, dice: random.Random) -> None:
        """Begin a request, send it slowly, and disconnect before its end."""
        data = json.dumps({"model": "base", "prompt": "tell " * 20_000}).encode()
        with closing(self.connect()) as connection:
            part = data[: dice.randrange(len(data))]
            connection.sendall(sent("/v1/completions", part, len(data)))
            time.sleep(dice.random() * STAYS_S / 4)

    def not_reading(self, dice: random.Random) -> None:
        """Request a long stream and read nothing, with the smallest receive buffer."""
        del dice
        if len(self.unread) >= UNREAD_MAX:
            self.unread.pop(0).close()
        connection = self.connect(window=1024)
        self.unread.append(connection)
        asked = {"model": "base", "prompt": "tell me", "max_tokens": 2000, "stream": True}
        connection.sendall(sent("/v1/completions", json.dumps(asked).encode()))

    def idle(self, dice: random.Random) -> None:
        """Open a hundred connections and send nothing."""
        held = [self.connect() for _ in range(100)]
        time.sleep(dice.random() * STAYS_S / 4)
        for connection in held:
            connection.close()

    def connect(self, window: int | None = None) -> socket.socket:
        connection = socket.socket()
        if window is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.settimeout(5)
        connection.bind(HERE)
        connection.connect(("127.0.0.1", self.port))
        return connection


def attack(
    port: int, only: str, seed: int, stop: Event, counts: SimpleQueue[tuple[Counter[str], ...]]
) -> None:
    """Run the hostile client in its process, and send its counts at the end."""
    hostile = Hostile(port, only)
    hostile.attack(random.Random(seed), stop)
    counts.put((hostile.done, hostile.statuses))
