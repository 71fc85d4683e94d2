"""Rows of JSONL and JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Fields, RowError, SpanRows, Spans, decode_row
from runtime.evaluation.data.json_stream import JsonStream, list_spans, lists_of_object
from runtime.evaluation.data.split_files import without_packing
from runtime.evaluation.data.utf8_file import Scratch, to_utf8

LISTS = ("data", "rows", "examples", "instances", "items", "questions", "test")
"""Names of the list of rows in an object, the likeliest first."""
OF_A_ROW = ("messages", "conversations", "conversation", "chosen", "rejected", "prompt")
"""Names of lists that belong to one row."""


def json_rows(path: Path, scratch: Scratch) -> SpanRows:
    """The rows of a file of either kind: one a line, a list of rows, or an object with a list.

    Raises InputError for a document that is damaged or has no list of rows.
    """
    place, start = to_utf8(path, scratch)
    with place.open("rb") as file:
        stream = JsonStream(file, path.name, start)
        is_json = without_packing(path.name.lower()).endswith(".json")
        first = first_character(file, start)
        if first == b"[":
            spans = list_spans(stream)
            if stream.peek():
                raise stream.error("something follows the list")
        elif is_json and first == b"{" and not is_jsonl(file, start):
            stream = JsonStream(file, path.name, start)
            spans = rows_of_object(stream, path, file)
        else:
            spans = index_lines(file, start)
        is_nested = len(spans.offsets) > 0 and "paragraphs" in first_row(file, spans)
    if is_nested:
        place, spans = unnested(place, spans, scratch)
    return SpanRows(path, place, spans, parse_object, owner=scratch)


def first_character(file: BinaryIO, start: int) -> bytes:
    """The first byte that is no space; empty for a file without any."""
    file.seek(start)
    found = b" "
    while found and not found.strip():
        found = file.read(1)
    file.seek(start)
    return found


def index_lines(file: BinaryIO, start: int) -> Spans:
    """The span of each line that is not empty."""
    spans = Spans()
    offset = start
    file.seek(start)
    for number, line in enumerate(file, 1):
        if line.strip():
            spans.add(offset, len(line), number)
        offset += len(line)
    return spans


def is_jsonl(file: BinaryIO, start: int) -> bool:
    """Whether a file that begins with { has a row on its first line, and more lines."""
    file.seek(start)
    line = file.readline()
    while line and not line.strip():
        line = file.readline()
    try:
        parse_object(line)
    except RowError:
        return False
    return any(line.strip() for line in file)


def rows_of_object(stream: JsonStream, path: Path, file: BinaryIO) -> Spans:
    """The list of rows in a document that is an object; the object itself if it is a row.

    Raises InputError where it is neither, or has several lists.
    """
    stream.peek()
    offset, line = stream.offset, stream.line
    lists, keys = lists_of_object(stream)
    end = stream.offset
    if stream.peek():
        raise stream.error("something follows the object")
    found = {
        key: spans
        for key, spans in lists.items()
        if key not in OF_A_ROW and len(spans.offsets) > 0 and is_object_at(file, spans.offsets[0])
    }
    named = [key for key in LISTS if key in found]
    if named or len(found) == 1:
        return found[named[0] if named else next(iter(found))]
    if len(found) > 1:
        raise InputError(
            f"{path.name} is an object with several lists: {', '.join(found)}",
            hint="save the rows of one as JSONL",
        )
    if lists and not any(key in OF_A_ROW for key in lists) and len(lists) == len(keys):
        raise InputError(
            f"{path.name} is an object of columns ({', '.join(keys[:8])}), not of rows",
            hint="save it with one row a line: in pandas, to_json(FILE, orient='records',"
            " lines=True)",
        )
    spans = Spans()
    spans.add(offset, end - offset, line)
    return spans


def is_object_at(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    return file.read(1) == b"{"


def first_row(file: BinaryIO, spans: Spans) -> Fields:
    file.seek(spans.offsets[0])
    try:
        return parse_object(file.read(spans.lengths[0]))
    except RowError:
        return {}


def parse_object(raw: bytes) -> Fields:
    """The row of a JSON object's bytes. Raises RowError for anything else."""
    text = decode_row(raw)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} (character {error.pos + 1})") from error
    except RecursionError as error:
        raise RowError("it is nested too deeply") from error
    except ValueError as error:  # integers of thousands of digits
        raise RowError(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError(f"it is {json_type(value)}, not an object with columns")
    return value


def json_type(value: object) -> str:
    """The name of a value's JSON type, in an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return next((words for kind, words in names.items() if isinstance(value, kind)), "no JSON")


def unnested(place: Path, spans: Spans, scratch: Scratch) -> tuple[Path, Spans]:
    """A copy of articles in SQuAD's form with one row for each question."""
    copy, flat = scratch.new_file(), Spans()
    articles = SpanRows(place, place, spans, parse_object)
    with copy.open("wb") as file:
        for number, article in articles.scan(range(len(articles))):
            rows = [{}] if isinstance(article, RowError) else questions(article)
            for row in rows:
                raw = json.dumps(row).encode()
                flat.add(file.tell(), len(raw), spans.lines[number])
                file.write(raw)
    return copy, flat


def questions(article: Fields) -> Iterator[dict[str, Any]]:
    """The questions of an article, each with its paragraph as the context."""
    for paragraph in objects(article.get("paragraphs")):
        for question in objects(paragraph.get("qas")):
            yield {
                **question, "context": paragraph.get("context"), "title": article.get("title"),
            }  # fmt: skip


def objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
