"""Which endpoints did not work lately, so that the next pull need not wait for them again.

Nobody is left out for it: an endpoint that did not answer is given less time for its first
answer, one that sent no bytes starts behind the others, and either is forgotten when it works.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from exporter.core.errors import DecantError
from exporter.core.files import write_json

Lack: TypeAlias = Literal["answers", "bytes"]
LACKS: tuple[Lack, ...] = ("answers", "bytes")
FORMAT = 1
KEPT_S = 7 * 24 * 3600


class Memory:
    """What earlier pulls learned, in a file that may be absent, damaged or not writable."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """Without `path` nothing outlives this object."""
        self.path, self.clock = path, clock
        self.failed = read(path, clock()) if path else {lack: {} for lack in LACKS}

    def lacks(self, url: str, what: Lack) -> bool:
        """Whether the endpoint gave none when it was last asked, within the last days."""
        return url in self.failed[what]

    def learn(self, what: Lack, *, failed: Iterable[str], worked: Iterable[str]) -> None:
        """Note who gave what was asked for and who did not; who sends bytes answers as well."""
        before = {lack: set(self.failed[lack]) for lack in LACKS}
        for url in failed:
            self.failed[what][url] = self.clock()
        for url in worked:
            for lack in LACKS if what == "bytes" else (what,):
                self.failed[lack].pop(url, None)
        if self.path and before != {lack: set(self.failed[lack]) for lack in LACKS}:
            with suppress(DecantError, OSError):  # it only saves time
                write_json(self.path, {"format": FORMAT, "failed": self.failed})


def usual_memory() -> Memory:
    """That of this user, in decant's cache."""
    from exporter.toolchain import cache_folder

    return Memory(cache_folder() / "endpoints.json")


def read(path: Path, now: float) -> dict[Lack, dict[str, float]]:
    """The failures in a file that are not too old; none where it makes no sense."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        failed = value["failed"] if value["format"] == FORMAT else {}
        return {lack: recent(failed.get(lack), now) for lack in LACKS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {lack: {} for lack in LACKS}


def recent(times: object, now: float) -> dict[str, float]:
    if not isinstance(times, dict):
        return {}
    return {
        url: at
        for url, at in times.items()
        if type(at) in (int, float) and math.isfinite(at) and 0 <= now - at < KEPT_S
    }
