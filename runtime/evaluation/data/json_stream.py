"""Finds the elements of a large JSON document's lists without holding the document."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, BinaryIO

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Spans

SPACE = re.compile(r"[ \t\r\n]*")
READ = 1 << 16  # the least bytes read at a time
CUT = 16  # characters at a buffer's end where a literal or an escape may be cut
DECODER = json.JSONDecoder()
OPEN_STRING = ("Unterminated string", "Invalid \\")
"""Errors whose position does not show whether the text is cut off."""


class JsonStream:
    """A JSON text read from a file in pieces, with the place up to which it was read."""

    def __init__(self, file: BinaryIO, name: str, offset: int) -> None:
        file.seek(offset)
        self.name = name
        self.offset = offset
        """The place in the file, in bytes."""
        self.line = 1
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self.advance(SPACE.match(self._text, self._at).end() - self._at)  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self.fill():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which is one of the wanted. Raises InputError for another."""
        found = self.peek()
        if not found or found not in wanted:
            is_end = "it ends" if not found else f"{found!r} stands"
            raise self.error(f"{is_end} where {' or '.join(wanted)} should be")
        self.advance(1)
        return found

    def value(self) -> Any:  # whatever JSON holds
        """The next value. Raises InputError for text that is no JSON."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith(OPEN_STRING) or error.pos >= len(self._text) - CUT
                if is_cut and self.fill():
                    continue
                self.advance(min(error.pos, len(self._text)) - self._at)
                raise self.error(error.msg) from error
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            except ValueError as error:  # integers of thousands of digits
                raise self.error(str(error)) from error
            is_closed = self._text[end - 1] in '}]"'
            if is_closed or end < len(self._text) or not self.fill():
                self.advance(end - self._at)
                return value

    def advance(self, count: int) -> None:
        """Move over some characters of the buffer."""
        piece = self._text[self._at : self._at + count]
        self.offset += len(piece.encode("utf-8"))
        self.line += piece.count("\n")
        self._at += count

    def fill(self) -> bool:
        """Read more, at least as much as is still unread; False at the end. Raises InputError."""
        rest = self._text[self._at :]
        raw = self._file.read(max(READ, len(rest)))
        try:
            self._text, self._at = rest + self._decode(raw, final=not raw), 0
        except UnicodeDecodeError as error:
            byte = self._file.tell() - len(raw) + error.start + 1
            raise InputError(
                f"{self.name}: byte {byte} is not UTF-8 (line {self.line} or later)",
                hint="convert the file: iconv -f latin1 -t utf-8 FILE > NEW (if it is Latin-1)",
            ) from error
        return bool(raw)

    def error(self, reason: str) -> InputError:
        return InputError(
            f"{self.name}, line {self.line}: not JSON: {reason}",
            hint="correct it; in JSONL, with one row a line, --skip-bad could leave it out",
        )


def list_spans(stream: JsonStream) -> Spans:
    """The span of each element of the next list. Raises InputError."""
    spans = Spans()
    stream.take("[")
    if stream.peek() == "]":
        stream.take("]")
        return spans
    while True:
        stream.peek()
        offset, line = stream.offset, stream.line
        stream.value()
        spans.add(offset, stream.offset - offset, line)
        if stream.take(",]") == "]":
            return spans


def lists_of_object(stream: JsonStream) -> tuple[dict[str, Spans], tuple[str, ...]]:
    """The spans of the elements of each list in the next object, and all its keys.

    Raises InputError for text that is no JSON.
    """
    lists: dict[str, Spans] = {}
    keys: list[str] = []
    stream.take("{")
    while stream.peek() != "}":
        if stream.peek() != '"':
            raise stream.error("a key in quotes should be here")
        key = str(stream.value())
        keys.append(key)
        stream.take(":")
        if stream.peek() == "[":
            lists[key] = list_spans(stream)
        else:
            stream.value()
        if stream.peek() != "}":
            stream.take(",")
    stream.take("}")
    return lists, tuple(keys)
