"""Watches the models' files, which other programs may replace or delete while they are served."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.core.errors import ModelError
from exporter.core.events import Note, Report
from exporter.core.gguf import GGUFFile, Value
from runtime.engine.opened_model import Model, open_model
from runtime.gateway.scheduling.adapter_watch import Mark, mark_of

AGAIN = "restart `decant serve`"
OF_A_FILE = ("general.", "decant.", "quantize.", "split.")
"""The beginnings of metadata keys that requests do not depend on."""
OF_DECANT = ("decant.tokenizer", "decant.embedding")
"""The beginnings of decant's keys that requests depend on."""


@dataclass
class ModelFiles:
    """The last seen state of each file; a changed one is read again before the next load."""

    report: Report
    seen: dict[Path, Mark] = field(default_factory=dict)
    headers: dict[Path, GGUFFile] = field(default_factory=dict)
    """The headers of the files that have changed."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, models: Iterable[Model]) -> None:
        """Remember the files' state, after the models were opened."""
        for model in models:
            with suppress(OSError):  # a missing file is reported at the next load
                self.seen[model.header.path] = mark_of(model.header.path)

    def checked(self, model: Model) -> Model:
        """The model as its file is now. Reads the file.

        Raises ModelError for a missing file, and for another model's file: its requests would be
        prepared with the tokens and the template of the first model.
        """
        path = model.header.path
        with self.lock:
            try:
                mark = mark_of(path)
            except OSError as error:
                raise ModelError(
                    f"`{path}` cannot be read any more: {error.strerror}",
                    hint=f"export or download it again, or {AGAIN}",
                ) from error
            if self.seen.setdefault(path, mark) == mark:
                header = self.headers.get(path, model.header)
                return model if header is model.header else replace(model, header=header)
            found = open_model(path, (), model.projector)
            if not is_same(model.header.metadata, found.header.metadata):
                raise ModelError(f"`{path}` is another model than at the start", hint=AGAIN)
            self.seen[path], self.headers[path] = mark, found.header
        self.report(Note(f"`{path.name}` has changed on disk: the new file is used"))
        return replace(model, header=found.header)


def is_same(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    """Whether two files' metadata lead to the same requests: settings, tokenizer, template."""

    def counted(metadata: Mapping[str, Value]) -> dict[str, Value]:
        return {
            key: value
            for key, value in metadata.items()
            if key == "general.architecture" or key.startswith(OF_DECANT)
            or not key.startswith(OF_A_FILE)
        }  # fmt: skip

    return counted(one) == counted(other)
