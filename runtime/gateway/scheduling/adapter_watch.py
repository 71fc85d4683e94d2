"""The files of adapters, which somebody may replace or break while they are served."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import ModelError
from exporter.core.events import Note, Report, Warn
from runtime.engine.adapters import Adapter, check_adapter
from runtime.engine.opened_model import Model

HEAD = 64 << 10  # bytes of a file by which it is known again
Mark = tuple[int, int, int]
"""Size, time and a checksum of the beginning."""


@dataclass
class AdapterFiles:
    """What was last seen of each file; one that has changed is checked again before it is used."""

    report: Report
    seen: dict[tuple[Path, Path], Mark] = field(default_factory=dict)
    """By the adapter's path and its model's."""
    broken: dict[tuple[Path, Path], str] = field(default_factory=dict)
    """Why an adapter cannot be used as its file is now."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, models: Iterable[Model]) -> None:
        """Remember the files as they are: they have just been checked."""
        for model in models:
            for adapter in model.adapters:
                with suppress(OSError):  # it is found missing when it is needed
                    self.seen[adapter.path, model.header.path] = mark_of(adapter.path)

    def checked(self, model: Model) -> dict[int, str]:
        """Why some of a model's adapters cannot be used, by their places. It reads files."""
        with self.lock:
            found = [self.problem(adapter, model) for adapter in model.adapters]
        return {place: why for place, why in enumerate(found) if why}

    def problem(self, adapter: Adapter, model: Model) -> str:
        """Why an adapter cannot be used; empty for one that can."""
        key = adapter.path, model.header.path
        try:
            mark = mark_of(adapter.path)
        except OSError as error:
            return self.told(key, f"its file cannot be read: {error.strerror}", adapter)
        was, self.seen[key] = self.seen.get(key), mark
        if was in (None, mark):
            return self.broken.get(key, "")
        try:
            check_adapter(adapter, model.header)
        except ModelError as error:
            return self.told(key, error.message, adapter)
        self.broken.pop(key, None)
        self.report(
            Note(f"the adapter {adapter.name!r} has changed on disk, and is taken as it is")
        )
        return ""

    def told(self, key: tuple[Path, Path], why: str, adapter: Adapter) -> str:
        shown = why.replace(f"`{adapter.path}`", repr(adapter.name))
        if self.broken.get(key) != shown:
            self.broken[key] = shown
            self.report(Warn(f"the adapter {adapter.name!r} is out: {why}"))
        return shown


def mark_of(path: Path) -> Mark:
    """Raises OSError."""
    found = path.stat()
    with path.open("rb") as file:
        return found.st_size, found.st_mtime_ns, zlib.crc32(file.read(HEAD))
