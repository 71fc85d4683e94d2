"""What the server says while it runs: a line of JSON for each request, or a table to look at."""

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
from runtime.terminal.markdown import Board

ROWS = 12
REDRAW_S = 0.5


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Lines:
    """One JSON object a line, for logs; flushed, so that none is lost."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Write to standard error, or to `out`."""
        self.out = out or sys.stderr

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
        try:
            self.out.write(json.dumps(record) + "\n")
            self.out.flush()
        except (OSError, ValueError):  # whoever read it has gone; the server goes on
            pass


class Table:
    """The models, the requests in flight and the last that happened, drawn over and over."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self.last: deque[tuple[str, ...]] = deque(maxlen=ROWS)
        self.told: deque[str] = deque(maxlen=4)

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
            self.told.append(f"{now()[11:19]}  {event.message}")

    async def draw(self, gateway: Gateway) -> None:
        """Runs until cancelled."""
        with Board() as board:
            while True:
                board.show(
                    [
                        (("MODEL", "STATE", "SLOTS", "WAITING", "MEMORY"), models(gateway)),
                        (("REQUEST", "MODEL", "STATE", "BYTES"), in_flight(gateway)),
                        (("TIME", "STATUS", "LAST", "MODEL", "TOOK", ""), list(self.last)),
                    ],
                    list(self.told),
                )
                await asyncio.sleep(REDRAW_S)


def models(gateway: Gateway) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for child in gateway.fleet.children.values():
        state = f"loading {child.progress:.0%}" if child.state == "loading" else child.state
        slots = f"{child.gate.used}/{child.gate.capacity}" if child.is_loaded else ""
        memory = size_text(child.nbytes) if child.is_loaded else ""
        rows.append((child.name, state, slots, str(len(child.gate.waiting)), memory))
    return rows


def in_flight(gateway: Gateway) -> list[tuple[str, ...]]:
    return [
        (call.request.url.path, call.record.model, call.state, str(call.record.nbytes))
        for call in list(gateway.calls)[:ROWS]
    ]
