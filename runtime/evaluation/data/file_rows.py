"""The rows of a file, which are read one after the other or by their numbers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from exporter.core.errors import InputError

Fields: TypeAlias = Mapping[str, Any]
"""A row's columns; a value is what JSON can hold."""


class RowError(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Rows(Protocol):
    """A file's rows, numbered from 0."""

    @property
    def path(self) -> Path:
        """The file as the user knows it."""

    @property
    def unit(self) -> str:
        """Whether `line` counts lines or rows."""

    def __len__(self) -> int: ...

    def line(self, number: int) -> int:
        """The line where a row begins, from 1; or the row's number, from 1."""

    def scan(self, wanted: Iterable[int]) -> Iterator[tuple[int, Fields | RowError]]:
        """The wanted rows, each with its number. wanted: numbers in ascending order."""


@dataclass(frozen=True, slots=True)
class Spans:
    """The offset, length and line of each row of a file, in 24 bytes a row."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("l"))

    def add(self, offset: int, length: int, line: int) -> None:
        self.offsets.append(offset)
        self.lengths.append(length)
        self.lines.append(line)


@dataclass(frozen=True, slots=True)
class SpanRows:
    """Rows of a text file, each parsed from its bytes when it is wanted."""

    path: Path
    place: Path
    """The file with the bytes: `path`, or a copy of it in UTF-8."""
    spans: Spans
    parse: Callable[[bytes], Fields]
    """Parses a row; raises RowError for bytes that are no row."""
    owner: object = None
    """Keeps the copy's folder for as long as the rows are used."""
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.spans.offsets)

    def line(self, number: int) -> int:
        """The line where a row begins, from 1."""
        return self.spans.lines[number]

    def scan(self, wanted: Iterable[int]) -> Iterator[tuple[int, Fields | RowError]]:
        """The wanted rows, each with its number; for a row that cannot be parsed, its error.

        Raises InputError for a file that can no longer be opened.
        """
        try:
            opened = self.place.open("rb")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read any more: {error.strerror}", hint="check the path"
            ) from error
        with opened as file:
            for number in wanted:
                file.seek(self.spans.offsets[number])
                try:
                    yield number, self.parse(file.read(self.spans.lengths[number]))
                except RowError as error:
                    yield number, error


def decode_row(raw: bytes) -> str:
    """A row's bytes as text. Raises RowError for other encodings and NUL."""
    if (nul := raw.find(b"\0")) >= 0:
        raise RowError(f"byte {nul + 1} is NUL", hint="save the file as UTF-8 text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte {error.start + 1} is {raw[error.start]:#04x}, which is not UTF-8",
            hint="convert the file: iconv -f latin1 -t utf-8 FILE > NEW (if it is Latin-1)",
        ) from error
