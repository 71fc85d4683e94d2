"""One client that sends what once took the server from all others, and does not stay for answers.

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
"""The address it comes from."""
STAYS_S = 1.0
"""The longest that it waits for an answer."""
PAUSE_S = 0.2
"""The longest that it rests between two: it is to harm by what it sends, not by how often."""
UNREAD_MAX = 8  # answers that it has asked for and does not read
Body = dict[str, object]
MANY = {f"p{n}": {"type": "object", "properties": {"a": {}, "b": {}}} for n in range(4000)}
WIDE = {f"p{n}": {"type": "string"} for n in range(250)}
"""As many properties as a schema may have."""
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
"""Requests by what is too much in them."""


def sent(route: str, data: bytes, nbytes: int | None = None) -> bytes:
    """A request with this body, of which `nbytes` are announced."""
    head = (
        f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data) if nbytes is None else nbytes}\r\n\r\n"
    )
    return head.encode() + data


@dataclass
class Hostile:
    """What it did to a server on this port."""

    port: int
    only: str = ""
    """The one kind that it sends; all where this is empty."""
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    """The answers that it waited for, such as `400 grammar`."""
    unread: list[socket.socket] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Statuses of 500, which no request may lead to."""
        return [told for told in self.statuses if told.startswith("500")]

    @contextmanager
    def attacking(self, seed: int = 7) -> Iterator[None]:
        """At work, as long as the block lasts."""
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
        """Everything it can do, by name."""
        return {
            **{name: partial(self.asking, name, asked) for name, asked in self.made().items()},
            "new scale": self.new_scale,
            "half a request": self.half,
            "unread answer": self.not_reading,
            "idle connections": self.idle,
        }

    def made(self) -> dict[str, bytes]:
        """The requests of BODIES, as they are sent."""
        return {
            name: sent(route, json.dumps({"model": "base", **body}).encode())
            for name, (route, body) in BODIES.items()
        } | {"16 MiB": sent("/v1/completions", (b"[" + b"[]," * (16 << 20))[: 16 << 20])}

    def asking(self, name: str, data: bytes, dice: random.Random) -> None:
        """Ask, and leave before most answers could be there."""
        with closing(self.connect()) as connection:
            connection.sendall(data)
            self.hear(connection, name, dice.random() * STAYS_S)

    def hear(self, connection: socket.socket, name: str, seconds: float) -> None:
        connection.settimeout(max(0.01, seconds))
        status = connection.recv(64).split(b" ")[1:2]
        if status:
            self.statuses[f"{status[0].decode()} {name}"] += 1

    def new_scale(self, dice: random.Random) -> None:
        """A scale that nobody has asked for yet, on the route where each has an engine."""
        body = {
            "model": f"base:pirate@{dice.random():.6f}",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
        }
        self.asking("new scale", sent("/v1/messages", json.dumps(body).encode()), dice)

    def half(self, dice: random.Random) -> None:
        """Begin a request, send it slowly, and hang up."""
        data = json.dumps({"model": "base", "prompt": "tell " * 20_000}).encode()
        with closing(self.connect()) as connection:
            part = data[: dice.randrange(len(data))]
            connection.sendall(sent("/v1/completions", part, len(data)))
            time.sleep(dice.random() * STAYS_S / 4)

    def not_reading(self, dice: random.Random) -> None:
        """Ask for a long stream and read none of it, in a window as small as can be."""
        del dice
        if len(self.unread) >= UNREAD_MAX:
            self.unread.pop(0).close()
        connection = self.connect(window=1024)
        self.unread.append(connection)
        asked = {"model": "base", "prompt": "tell me", "max_tokens": 2000, "stream": True}
        connection.sendall(sent("/v1/completions", json.dumps(asked).encode()))

    def idle(self, dice: random.Random) -> None:
        """A hundred connections on which nothing is said."""
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
    """The hostile client's process."""
    hostile = Hostile(port, only)
    hostile.attack(random.Random(seed), stop)
    counts.put((hostile.done, hostile.statuses))
