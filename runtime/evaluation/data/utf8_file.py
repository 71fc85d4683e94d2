"""Text files as UTF-8: compressed files and other encodings are converted to a copy."""

from __future__ import annotations

import codecs
import gzip
import shutil
import tempfile
import weakref
import zlib
from importlib import import_module
from pathlib import Path
from typing import IO

from exporter.core.errors import InputError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; UTF-32's begins with UTF-16's, and so comes first."""
OTHERS = {
    b"PAR1": "a Parquet file: its name should end in .parquet",
    b"PK\x03\x04": "a zip: unpack it first",
    b"ARROW1": "an Arrow file: its name should end in .arrow",
    b"GGUF": "a model (GGUF), not data",
}
"""First bytes of files that are no text."""
CHUNK = 1 << 20  # characters converted at a time


class Scratch:
    """A temporary folder, made when a file is first wanted, and deleted with this object."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._count = 0

    def new_file(self) -> Path:
        """A path that no other file has."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="decant-data-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count += 1
        return self._folder / f"{self._count}.utf8"


def to_utf8(path: Path, scratch: Scratch) -> tuple[Path, int]:
    """The file in UTF-8, itself or a copy, and where its text begins, behind a byte order mark.

    Raises InputError for a file that is no text or cannot be read.
    """
    place = path
    try:
        if first_bytes(place).startswith(GZIP):
            place = unpacked(place, scratch)
        elif first_bytes(place).startswith(ZSTD):
            place = unpacked_zstd(place, scratch)
        head = first_bytes(place)
        encoding = next((name for mark, name in ENCODINGS if head.startswith(mark)), None)
        if encoding:
            place = converted(place, encoding, scratch)
            head = first_bytes(place)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="check the path and its rights",
        ) from error
    if other := next((words for mark, words in OTHERS.items() if head.startswith(mark)), None):
        raise InputError(f"{path} is {other}", hint="data is JSONL, JSON, CSV, TSV or Parquet")
    return place, len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def unpacked(path: Path, scratch: Scratch) -> Path:
    """The content of a gzip. Raises InputError if it is damaged."""
    copy = scratch.new_file()
    try:
        with gzip.open(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is a damaged gzip: {error}", hint="download or compress it again"
        ) from error
    return copy


def unpacked_zstd(path: Path, scratch: Scratch) -> Path:
    """The content of a zstd file. Raises InputError if it is damaged, and without pyarrow."""
    try:
        arrow = import_module("pyarrow")
    except ImportError as error:
        raise InputError(
            f"{path.name} is compressed by zstd, and pyarrow is not installed",
            hint="pip install 'decant-llm[eval]', or unpack it first",
        ) from error
    copy = scratch.new_file()
    try:
        with arrow.input_stream(str(path), compression="zstd") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(
            f"{path} is damaged zstd: {error}", hint="download or compress it again"
        ) from error
    return copy


def converted(path: Path, encoding: str, scratch: Scratch) -> Path:
    """A copy in UTF-8. Raises InputError where the bytes are not of the encoding."""
    copy = scratch.new_file()
    with (
        path.open(encoding=encoding, newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        try:
            copy_text(source, target)
        except UnicodeError as error:
            raise InputError(
                f"{path} begins like {encoding.upper()} and is not: {error}",
                hint="save it as UTF-8",
            ) from error
    return copy


def copy_text(source: IO[str], target: IO[str]) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
