"""Remembers endpoints that failed lately, and how many connections the others allow.

The next pull then neither waits for them nor opens too many connections again. No endpoint is
excluded: one that did not answer gets less time for its first answer, one that sent no bytes starts
behind the others, and a success clears the entry. A host that refused connections gets the number
that it allowed, and more only later.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from exporter.core.atomic_file import write_json
from exporter.core.errors import DecantError

Lack: TypeAlias = Literal["answers", "bytes"]
LACKS: tuple[Lack, ...] = ("answers", "bytes")
Kind: TypeAlias = Literal["in all", "of a file"]
KINDS: tuple[Kind, ...] = ("in all", "of a file")
MOST = 99  # connections; larger numbers in the file are ignored
Failed: TypeAlias = dict[Lack, dict[str, float]]
Allowed: TypeAlias = dict[Kind, dict[str, tuple[int, float]]]
FORMAT = 1
KEPT_S = 7 * 24 * 3600  # seconds an entry counts, a week


class ProbeHistory:
    """Results of earlier pulls, in a file that may be absent, damaged or read-only."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """History read from `path`; without one it lasts as long as this object."""
        self.path, self.clock = path, clock
        self.failed, self.allowed = read(path, clock()) if path else nothing()

    def lacks(self, url: str, what: Lack) -> bool:
        """Whether the endpoint failed to deliver `what` when last asked, within a week."""
        return url in self.failed[what]

    def learn(self, what: Lack, *, failed: Iterable[str], worked: Iterable[str]) -> None:
        """Record which endpoints delivered and which failed; sending bytes implies answering."""
        before = {lack: set(self.failed[lack]) for lack in LACKS}
        for url in failed:
            self.failed[what][url] = self.clock()
        for url in worked:
            for lack in LACKS if what == "bytes" else (what,):
                self.failed[lack].pop(url, None)
        if before != {lack: set(self.failed[lack]) for lack in LACKS}:
            self.write()

    def most(self, host: str, kind: Kind) -> int | None:
        """Connections that a host allows; None if it has refused none lately."""
        entry = self.allowed[kind].get(host)
        return entry[0] if entry else None

    def learn_most(self, host: str, kind: Kind, most: int | None) -> None:
        """Record how many connections a host allows; None if it refuses none."""
        if most != self.most(host, kind):
            self.allowed[kind].pop(host, None)
            if most is not None:
                self.allowed[kind][host] = (most, self.clock())
            self.write()

    def write(self) -> None:
        if self.path:
            with suppress(DecantError, OSError):  # the history only saves time
                value = {"format": FORMAT, "failed": self.failed, "allowed": self.allowed}
                write_json(self.path, value)


def usual_history() -> ProbeHistory:
    """The user's history, in decant's cache."""
    from exporter.llamacpp.toolchain import cache_folder

    return ProbeHistory(cache_folder() / "endpoints.json")


def read(path: Path, now: float) -> tuple[Failed, Allowed]:
    """Read the recent entries of a file; empty if it is damaged or of another format."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            return nothing()
        failed, allowed = value["failed"], value.get("allowed", {})
        return (
            {lack: recent(failed.get(lack), now) for lack in LACKS},
            {kind: recent_most(allowed.get(kind), now) for kind in KINDS},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return nothing()


def nothing() -> tuple[Failed, Allowed]:
    return {lack: {} for lack in LACKS}, {kind: {} for kind in KINDS}


def recent(times: object, now: float) -> dict[str, float]:
    if not isinstance(times, dict):
        return {}
    return {url: at for url, at in times.items() if is_recent(at, now)}


def recent_most(entries: object, now: float) -> dict[str, tuple[int, float]]:
    if not isinstance(entries, dict):
        return {}
    return {
        host: (entry[0], entry[1])
        for host, entry in entries.items()
        if isinstance(entry, list)
        and len(entry) == 2  # noqa: PLR2004 - how many, and when
        and type(entry[0]) is int
        and 0 < entry[0] <= MOST
        and is_recent(entry[1], now)
    }


def is_recent(at: object, now: float) -> bool:
    return isinstance(at, int | float) and math.isfinite(at) and 0 <= now - at < KEPT_S
