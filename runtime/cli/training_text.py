"""An adapter's training data as one text, if its folder names files on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter.core.errors import DecantError
from exporter.core.events import Report, silent
from runtime.cli.eval_command import opened_data
from runtime.cli.eval_options import EvalOptions
from runtime.evaluation.data.training_data import named_data, places_of
from runtime.evaluation.item import Item

LONGEST = 200_000  # characters: more make an imatrix no better, and take time
LEAST = 8_000  # characters: fewer are not worth it


def training_text(adapters: Sequence[Path], *, report: Report = silent) -> tuple[str, str] | None:
    """The name and the text of the first training data that is found; None without any."""
    for path in named_files(adapters):
        try:
            dataset = opened_data(EvalOptions((), str(path)), report)
            text = joined(text_of(item) for item in dataset)
        except DecantError:  # a folder of no known layout, say
            continue
        if len(text) >= LEAST:
            return path.name, text
    return None


def named_files(adapters: Sequence[Path]) -> Iterator[Path]:
    """The training files that adapters' folders name, also relative to the folder or its parent."""
    for adapter in adapters:
        for place in places_of(adapter):
            for _, name in named_data(place):
                found = (Path(name), place / name, place.parent / name)
                yield from (path for path in found if path.is_file())


def text_of(item: Item) -> str:
    """A row's conversation and its first answer."""
    turns = [str(message.get("content") or "") for message in item.messages]
    return "\n".join([*turns, *item.references[:1]])


def joined(texts: Iterator[str]) -> str:
    """The texts one after the other, up to LONGEST characters."""
    parts: list[str] = []
    size = 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size >= LONGEST:
            break
    return "\n\n".join(parts)[:LONGEST]
