"""Watches the adapters' files, which may change or break while they are served."""

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

HEAD = 64 << 10  # bytes of a file that identify its content
Mark = tuple[int, int, int]
"""Size, modification time in ns, and a checksum of the beginning."""


@dataclass
class AdapterFiles:
    """The last seen state of each file; a changed file is checked before the next use."""

    report: Report
    seen: dict[tuple[Path, Path], Mark] = field(default_factory=dict)
    """Keyed by the adapter's path and its model's path."""
    broken: dict[tuple[Path, Path], str] = field(default_factory=dict)
    """The reason why an adapter's present file cannot be used."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, models: Iterable[Model]) -> None:
        """Remember the files' state, after the models were opened and checked."""
        for model in models:
            for adapter in model.adapters:
                with suppress(OSError):  # a missing file is reported at the next load
                    self.seen[adapter.path, model.header.path] = mark_of(adapter.path)

    def forget(self, adapter: Adapter, model: Model) -> None:
        """Drop the state of a removed adapter's file."""
        with self.lock:
            self.seen.pop((adapter.path, model.header.path), None)
            self.broken.pop((adapter.path, model.header.path), None)

    def checked(self, model: Model) -> dict[int, str]:
        """The unusable adapters of a model: their index, and the reason. Reads the files."""
        with self.lock:
            found = [self.problem(adapter, model) for adapter in model.adapters]
        return {place: why for place, why in enumerate(found) if why}

    def problem(self, adapter: Adapter, model: Model) -> str:
        """Why an adapter cannot be used; empty when it can."""
        key = adapter.path, model.header.path
        try:
            mark = mark_of(adapter.path)
        except OSError as error:
            return self.note_broken(key, f"its file cannot be read: {error.strerror}", adapter)
        was, self.seen[key] = self.seen.get(key), mark
        if was in (None, mark):
            return self.broken.get(key, "")
        try:
            check_adapter(adapter, model.header)
        except ModelError as error:
            return self.note_broken(key, error.message, adapter)
        self.broken.pop(key, None)
        self.report(Note(f"the adapter {adapter.name!r} has changed on disk: the new file is used"))
        return ""

    def note_broken(self, key: tuple[Path, Path], why: str, adapter: Adapter) -> str:
        """Report the reason once; returns it without the file's path."""
        shown = why.replace(f"`{adapter.path}`", repr(adapter.name))
        if self.broken.get(key) != shown:
            self.broken[key] = shown
            self.report(Warn(f"the adapter {adapter.name!r} is left out: {why}"))
        return shown


def mark_of(path: Path) -> Mark:
    """The present state of a file. Raises OSError."""
    found = path.stat()
    with path.open("rb") as file:
        return found.st_size, found.st_mtime_ns, zlib.crc32(file.read(HEAD))
