"""Data that is opened: its items, each read from the file when it is wanted."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Fields, RowError, Rows
from runtime.evaluation.data.layouts import Layout
from runtime.evaluation.data.reference_texts import as_text, refuse_unsendable
from runtime.evaluation.data.row_parts import Parts, read_parts
from runtime.evaluation.evaluation import DataFacts
from runtime.evaluation.item import Item

COLUMN = 200  # characters of the longest value that results are grouped by
JOINED = ("input", "context", "passage", "system", "system_prompt")
"""Columns that become a part of the conversation."""
SHOWN = 10  # bad rows kept with their reasons


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    unit: str
    """Whether `line` counts lines or rows."""
    line: int
    reason: str
    hint: str | None = None

    @property
    def words(self) -> str:
        return f"{self.file}, {self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes items of rows."""

    layout: Layout
    labels: tuple[str, ...]
    """Names of the numbers in the column of labels, if known."""
    system: str
    id_column: str
    """Empty for rows that are named by their place."""

    def parts(self, row: Fields) -> Parts:
        """The parts of a row's item. Raises RowError."""
        parts = read_parts(row, self.layout, self.labels, self.system)
        refuse_unsendable((parts.turns, parts.references, parts.rejected))
        return parts

    def id_of(self, row: Fields, place: int) -> str:
        """The row's own id, else its place, from 1. Raises RowError for an id that is no text."""
        own = row.get(self.id_column) if self.id_column else None
        if isinstance(own, dict | list):
            raise RowError(f"its `{self.id_column}` is neither a text nor a number")
        text = as_text(own)
        refuse_unsendable(text)
        return text or str(place)

    def item(self, row: Fields, place: int, line: int) -> Item:
        """The item of a row. Raises RowError."""
        parts = self.parts(row)
        used = {name for _, name in self.layout.columns} | {self.id_column, *JOINED}
        return Item(
            id=self.id_of(row, place),
            line=line,
            messages=tuple(parts.turns),
            references=parts.references,
            rejected=parts.rejected,
            columns=dict(other_columns(row, used)),
        )


def other_columns(row: Fields, used: set[str]) -> Iterator[tuple[str, str]]:
    """The columns without a role whose values are short texts, numbers, true or false."""
    for name, value in row.items():
        if name in used or value is None or isinstance(value, dict | list):
            continue
        text = as_text(value)
        if text and len(text) <= COLUMN and is_sendable(text):
            yield name, text


def is_sendable(text: str) -> bool:
    try:
        refuse_unsendable(text)
    except RowError:
        return False
    return True


class Files:
    """The rows of several files as one sequence, numbered from 0."""

    def __init__(self, files: Sequence[Rows]) -> None:
        self.files = files
        self.starts = [sum(len(one) for one in files[:n]) for n in range(len(files))]

    def __len__(self) -> int:
        return sum(len(one) for one in self.files)

    def place(self, number: int) -> tuple[Rows, int]:
        """The file of a row, and the row's line in it."""
        index = bisect_right(self.starts, number) - 1
        while not len(self.files[index]):
            index -= 1
        return self.files[index], self.files[index].line(number - self.starts[index])

    def line(self, number: int) -> int:
        """A row's line; for several files the row's number, from 1, which is unique."""
        return self.place(number)[1] if len(self.files) == 1 else number + 1

    def bad_row(self, number: int, error: RowError) -> BadRow:
        file, line = self.place(number)
        return BadRow(file.path.name, file.unit, line, error.reason, error.hint)

    def scan(self, wanted: Iterable[int]) -> Iterator[tuple[int, Fields | RowError]]:
        """The wanted rows, each with its number. wanted: numbers in ascending order."""
        numbers = list(wanted) if not isinstance(wanted, Sequence) else wanted
        begin = 0
        for start, file in zip(self.starts, self.files, strict=True):
            end = begin
            while end < len(numbers) and numbers[end] < start + len(file):
                end += 1
            chosen = (numbers[n] - start for n in range(begin, end))
            yield from ((number + start, row) for number, row in file.scan(chosen))
            begin = end


class Dataset:
    """The items of data, in the order of its rows; iterating reads the file again each time."""

    def __init__(
        self,
        files: Files,
        reader: RowReader,
        chosen: Sequence[int],
        facts: DataFacts,
        *,
        split: str | None = None,
        skipped: Sequence[BadRow] = (),
    ) -> None:
        self.facts = facts
        self.labels = facts.labels
        self.split = split
        """The split that was measured; None for a single file."""
        self.skipped = tuple(skipped)
        """The first ten of the rows left out; `facts.skipped` counts all."""
        self._files = files
        self._reader = reader
        self._chosen = array("q", chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Item]:
        return self._items(self._chosen)

    def __getitem__(self, number: int) -> Item:
        """An item by its number, from 0. Raises IndexError."""
        return next(self._items(array("q", [self._chosen[number]])))

    def _items(self, numbers: Sequence[int]) -> Iterator[Item]:
        for number, row in self._files.scan(numbers):
            try:
                if isinstance(row, RowError):
                    raise row
                yield self._reader.item(row, number + 1, self._files.line(number))
            except RowError as error:
                raise InputError(
                    self._files.bad_row(number, error).words,
                    hint="the file has changed since it was opened: start again",
                ) from error
