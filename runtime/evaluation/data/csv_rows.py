"""Rows of CSV and TSV files, whose quoted fields may hold line breaks."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import BinaryIO

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Fields, RowError, SpanRows, Spans, decode_row
from runtime.evaluation.data.split_files import without_packing
from runtime.evaluation.data.utf8_file import Scratch, to_utf8

FIELD = 1 << 26  # characters of the longest field; the csv module's own limit is 131072
RESTARTS = 20  # unclosed quotes after which the rest of the file counts as one row


def csv_rows(path: Path, scratch: Scratch) -> SpanRows:
    """The rows below the header. Raises InputError where there is no usable header."""
    csv.field_size_limit(FIELD)
    place, start = to_utf8(path, scratch)
    with place.open("rb") as file:
        file.seek(start)
        delimiter = delimiter_of(path, file.readline())
        spans = index_records(file, start, delimiter)
        header = read_header(path, file, spans, delimiter)

    def parse(raw: bytes) -> Fields:
        values = parse_record(raw, delimiter)
        if len(values) != len(header):
            raise RowError(f"it has {len(values)} fields, and the header names {len(header)}")
        return dict(zip(header, values, strict=True))

    rows = Spans(spans.offsets[1:], spans.lengths[1:], spans.lines[1:])
    return SpanRows(path, place, rows, parse, owner=scratch)


def delimiter_of(path: Path, first: bytes) -> str:
    """The character between fields, by the file's name and its first line."""
    if without_packing(path.name.lower()).endswith(".tsv"):
        return "\t"
    return next((mark for mark in (",", ";", "\t") if mark.encode() in first), ",")


class Lines:
    """A file's lines for the csv module, with the place of the next one.

    They are decoded as Latin-1, which keeps each byte; delimiters and quotes are ASCII.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self.line = 1
        self.offset = offset
        self.is_at_end = False
        file.seek(offset)

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline()
        if not raw:
            self.is_at_end = True
            raise StopIteration
        self.offset += len(raw)
        self.line += 1
        return raw.decode("latin-1").replace("\0", " ")

    def restart_after(self, offset: int, line: int) -> None:
        """Go back to the line that follows the one at `offset`."""
        self._file.seek(offset)
        self.offset = offset + len(self._file.readline())
        self.line = line + 1
        self.is_at_end = False


def index_records(file: BinaryIO, start: int, delimiter: str) -> Spans:
    """The span of each record, the header first; a malformed record has a span, too."""
    spans = Spans()
    lines = Lines(file, start)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    restarts = 0
    while True:
        offset, line = lines.offset, lines.line
        try:
            record = next(reader, None)
        except csv.Error:
            record = [""]
            if lines.is_at_end and lines.line > line + 1 and restarts < RESTARTS:
                restarts += 1
                lines.restart_after(offset, line)
        if record is None:
            return spans
        if record:
            spans.add(offset, lines.offset - offset, line)


def parse_record(raw: bytes, delimiter: str) -> list[str]:
    """The fields of one record. Raises RowError."""
    text = io.StringIO(decode_row(raw), newline="")
    try:
        return next(csv.reader(text, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        reason = "a quote is opened and not closed" if "end of data" in str(error) else str(error)
        raise RowError(reason) from error


def read_header(path: Path, file: BinaryIO, spans: Spans, delimiter: str) -> list[str]:
    """The names of the columns. Raises InputError."""
    if not len(spans.offsets):
        raise InputError(f"{path} is empty", hint="its first line names the columns")
    file.seek(spans.offsets[0])
    try:
        header = [name.strip() for name in parse_record(file.read(spans.lengths[0]), delimiter)]
    except RowError as error:
        raise InputError(
            f"{path.name}, line {spans.lines[0]}: {error.reason}",
            hint=error.hint or "the first line names the columns",
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(
            f"{path.name} names the column {twice[0]!r} more than once",
            hint="give each column another name" if twice[0] else
            "the first line names every column",
        )  # fmt: skip
    return header
