"""The running server's output: a line of JSON for each request, or a table in the terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TextIO

from exporter.core.events import Event, Note, Progress, Step, Warn
from exporter.core.paths import size_text
from runtime.gateway.call import Gateway
from runtime.gateway.log_writer import Writer
from runtime.terminal.markdown import Board

ROWS = 12  # requests in each part of the table
REDRAW_S = 0.5  # between two drawings
LINES_MAX = 10_000  # that may wait for the writer


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Lines:
    """Writes the log: one JSON object per line, flushed, from a separate thread.

    If the log's reader stops, lines are dropped and counted, and no request is delayed.
    """

    def __init__(self, out: TextIO | None = None, room: int = LINES_MAX) -> None:
        """Write to `out`, or to standard error; at most `room` lines wait."""
        self.out = out or sys.stderr
        self.writer = Writer(self.write_out, room)

    def request(self, record: Mapping[str, Any]) -> None:
        self.write({"time": now(), "event": "request", **record})

    def event(self, event: Event) -> None:
        match event:
            case Step() | Note():
                self.write({"time": now(), "event": "note", "message": event.message})
            case Warn():
                self.write({"time": now(), "event": "warning", "message": event.message})
            case Progress():
                pass

    def write(self, record: Mapping[str, Any]) -> None:
        self.writer.put(json.dumps(record))

    def write_out(self, line: str, dropped: int) -> None:
        if dropped:
            record = {"time": now(), "event": "dropped", "count": dropped}
            line = f"{json.dumps(record)}\n{line}"
        try:
            self.out.write(line + "\n")
            self.out.flush()
        except (OSError, ValueError):  # the reader has closed it; the server keeps running
            pass

    def close(self) -> None:
        self.writer.close()


class Table:
    """Draws the models, the running requests and the latest events, again and again."""

    def __init__(self) -> None:
        self.last: deque[tuple[str, ...]] = deque(maxlen=ROWS)
        self.events: deque[str] = deque(maxlen=4)
        self.board: Board | None = None
        self.writer = Writer(self.show, 1)

    def request(self, record: Mapping[str, Any]) -> None:
        self.last.append(
            (
                now()[11:19],
                str(record["status"]),
                f"{record['method']} {record['path']}",
                str(record["model"]),
                f"{record['seconds']:.2f} s",
                "" if record["ending"] == "complete" else str(record["ending"]),
            )
        )

    def event(self, event: Event) -> None:
        if not isinstance(event, Progress):
            self.events.append(f"{now()[11:19]}  {event.message.splitlines()[0]}")

    async def draw(self, gateway: Gateway) -> None:
        """Draw until cancelled. A stopped terminal (Ctrl-S) delays no request."""
        while True:
            self.writer.put(
                (
                    (
                        (("MODEL", "STATE", "SLOTS", "WAITING", "MEMORY"), models(gateway)),
                        (("REQUEST", "MODEL", "STATE", "BYTES"), in_flight(gateway)),
                        (("TIME", "STATUS", "LAST", "MODEL", "TOOK", ""), list(self.last)),
                    ),
                    list(self.events),
                )
            )
            await asyncio.sleep(REDRAW_S)

    def show(self, drawn: tuple[Any, list[str]], dropped: int) -> None:
        del dropped  # only the newest table matters
        if self.board is None:
            self.board = Board()
            self.board.__enter__()
        self.board.show(*drawn)

    def close(self) -> None:
        self.writer.close()
        if self.board is not None and not self.writer.thread.is_alive():
            self.board.__exit__()


def models(gateway: Gateway) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for engine in gateway.pool.engines.values():
        state = f"loading {engine.progress:.0%}" if engine.state == "loading" else engine.state
        slots = f"{engine.queue.used}/{engine.queue.capacity}" if engine.is_loaded else ""
        memory = size_text(engine.nbytes) if engine.is_loaded else ""
        rows.append((engine.name, state, slots, str(len(engine.queue.waiting)), memory))
    return rows


def in_flight(gateway: Gateway) -> list[tuple[str, ...]]:
    return [
        (call.request.url.path, call.record.model, call.state, str(call.record.nbytes))
        for call in list(gateway.calls)[:ROWS]
    ]
