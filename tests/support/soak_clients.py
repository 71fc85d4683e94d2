"""A soak test: many clients, some of which behave badly, for a while; counts wrong answers."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path

from tests.runtime.gateway.conftest import Served, chat, until

BAD = (
    b"", b"{", b"[]", b"\xff", b'{"a": 1e400}', b'{"model": "none"}', b'{"messages": 3}',
    b'{"model": "base", "messages": [{"role": "user"}], "max_tokens": "x"}',
    b'{"a":' * 5000, b'{"model": "base:pirate", "prompt": "' + b"x " * 20_000 + b'"}',
)  # fmt: skip
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize")
UNAVAILABLE = 503
DYING_S = 0.5
"""The time after a kill in which the dying engine may still accept a request."""


@dataclass
class Soak:
    """The clients of one soak test, and their counts."""

    served: Served
    expected: dict[tuple[str, str], str]
    clients: int = 8
    are_apart: bool = False
    """Whether each client has a separate address; only Linux has so many on the loopback."""
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    """Answers with another adapter's text, and requests that failed without a kill."""
    killed_at: float = 0.0
    kills: int = 0
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, float]] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)
    """The begin and the end of each request that was answered right, in seconds."""

    def run(self, seconds: float, *, kill_every_s: float | None = None, seed: int = 7) -> None:
        """Run the clients, kill an engine from time to time, and measure before and after."""
        self.settle()
        self.first = self.measure()
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(self.clients) as pool:
            works = [
                pool.submit(self.client, self.seen_from(n), random.Random(seed + n), end)
                for n in range(self.clients)
            ]
            if kill_every_s is not None:
                self.killer(random.Random(seed), end, kill_every_s)
            for work in works:
                work.result()
        self.settle()
        self.last = self.measure()

    def seen_from(self, number: int) -> Served:
        """The server with the address of client `number`."""
        return replace(self.served, source=f"127.0.0.{10 + number}" if self.are_apart else "")

    def client(self, served: Served, dice: random.Random, end: float) -> None:
        acts = (self.proper, self.proper, self.proper, self.streaming, self.leaving, self.bad)
        while time.monotonic() < end:
            act = dice.choice(acts)
            began = time.monotonic()
            try:
                act(served, dice)
            except (OSError, HTTPException, ValueError, KeyError) as error:
                self.lost(act.__name__, began, repr(error), is_told=False)

    def lost(self, what: str, began: float, why: object, *, is_told: bool) -> None:
        """Count a missing answer: it is right only after a kill, and if the client got an error.

        is_told: whether the client got an error that says so.
        """
        is_killed = self.killed_at and began - DYING_S < self.killed_at < time.monotonic()
        if is_killed and is_told:
            self.answers["lost to a kill"] += 1
        else:
            self.wrong.append((what, why))

    def proper(self, served: Served, dice: random.Random) -> None:
        (model, prompt), answer = dice.choice(list(self.expected.items()))
        began = time.monotonic()
        status, body = served.ask("/v1/chat/completions", chat(model, prompt))
        if status == 200 and body["choices"][0]["message"]["content"] == answer:
            self.answers["right"] += 1
            self.took.append((began, time.monotonic()))
        elif status == 200:
            self.wrong.append((model, prompt, body["choices"][0]["message"]["content"]))
        else:
            self.lost(model, began, (status, body), is_told=status == UNAVAILABLE)

    def streaming(self, served: Served, dice: random.Random) -> None:
        (model, prompt), answer = dice.choice(list(self.expected.items()))
        began = time.monotonic()
        body = chat(model, prompt, stream=True)
        with served.send("POST", "/v1/chat/completions", body) as response:
            text = response.read().decode()
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        if response.status != 200 or events[-1] != "[DONE]":
            is_told = response.status == UNAVAILABLE or '"error"' in "".join(events[-1:])
            self.lost(model, began, (response.status, text[-300:]), is_told=is_told)
            return
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        said = "".join(delta.get("content") or "" for delta in deltas)
        if said == answer:
            self.answers["streamed"] += 1
        else:
            self.wrong.append((model, prompt, said))

    def leaving(self, served: Served, dice: random.Random) -> None:
        """Request a long answer, and leave before its end or in the middle of the request."""
        body = json.dumps(chat("base:liar", "tell", max_tokens=400, stream=dice.random() < 0.5))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        data = (head + body).encode()
        with closing(served.open()) as connection:
            cut = len(data) if dice.random() < 0.7 else dice.randrange(len(data))
            connection.sendall(data[:cut])
            time.sleep(dice.random() * 0.3)
        self.answers["left"] += 1

    def bad(self, served: Served, dice: random.Random) -> None:
        began = time.monotonic()
        with served.send("POST", dice.choice(ROUTES), dice.choice(BAD)) as response:
            response.read()
        if response.status < 500:  # llama-server overlooks what it does not know
            self.answers["refused"] += 1
        else:
            is_told = response.status == UNAVAILABLE
            self.lost("a bad request", began, response.status, is_told=is_told)

    def forget(self) -> None:
        """Reset the counts, after the warm-up."""
        self.answers.clear()
        self.took.clear()
        self.samples.clear()
        self.kills, self.killed_at = 0, 0.0

    def killer(self, dice: random.Random, end: float, every_s: float) -> None:
        stop = threading.Event()
        while not stop.wait(min(every_s, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return
            children = self.served.children()
            if children:
                self.killed_at = time.monotonic()
                os.kill(dice.choice(children), signal.SIGKILL)
                self.kills += 1
            self.samples.append(self.measure())

    def settle(self) -> None:
        """Wait until no request is running or waiting."""
        assert until(lambda: self.served.metric("decant_slots_used") == 0, 60)
        assert until(lambda: self.served.metric("decant_queue_depth") == 0, 60)

    def measure(self) -> dict[str, float]:
        pid = self.served.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return {
            "rss": int(rss.split()[1]) * 1024,
            "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": int(
                next(x for x in status.splitlines() if x.startswith("Threads")).split()[1]
            ),
            "children": len(self.served.children()),
        }
