"""Rows of Parquet files, read in batches by pyarrow."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Fields, RowError

BATCH = 128  # rows decoded at a time
RECENT = 4  # batches kept, for rows that are asked for one by one


@dataclass(eq=False)
class RecentBatches:
    """The batches decoded last, each with the number of its first row."""

    kept: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=RECENT))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, number: int) -> tuple[int, Any] | None:
        """The batch with a row, and the number of its first row; None if it is not kept."""
        with self.lock:
            for first, batch in self.kept:
                if first <= number < first + batch.num_rows:
                    return first, batch
        return None

    def add(self, first: int, batch: Any) -> None:
        with self.lock:
            self.kept.append((first, batch))


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The rows of a Parquet file; columns of bytes, such as pictures, and of times are left out."""

    path: Path
    columns: tuple[str, ...]
    groups: tuple[int, ...]
    """Number of rows of each row group."""
    unit: str = "row"
    recent: RecentBatches = field(default_factory=RecentBatches, compare=False)

    def __len__(self) -> int:
        return sum(self.groups)

    def line(self, number: int) -> int:
        """The row's number, from 1."""
        return number + 1

    def scan(self, wanted: Iterable[int]) -> Iterator[tuple[int, Fields | RowError]]:
        """The wanted rows, each with its number; row groups without any are not read.

        Raises InputError where the file is damaged.
        """
        numbers = list(wanted)
        if len(numbers) == 1 and (found := self.recent.find(numbers[0])):
            yield numbers[0], row_of(found[1], numbers[0] - found[0])
            return
        place, first = 0, 0
        for group, count in enumerate(self.groups):
            begin = place
            while place < len(numbers) and numbers[place] < first + count:
                place += 1
            if begin < place:
                yield from self._scan_group(group, first, numbers[begin:place])
            first += count

    def _scan_group(
        self, group: int, first: int, numbers: list[int]
    ) -> Iterator[tuple[int, Fields | RowError]]:
        place = 0
        with opened(self.path) as file:
            batches = file.iter_batches(BATCH, row_groups=[group], columns=list(self.columns))
            for batch in batches_of(self.path, batches):
                end = first + batch.num_rows
                begin = place
                while place < len(numbers) and numbers[place] < end:
                    place += 1
                if begin < place:
                    self.recent.add(first, batch)
                for number in numbers[begin:place]:
                    yield number, row_of(batch, number - first)
                if place == len(numbers):
                    return
                first = end


def row_of(batch: Any, number: int) -> Fields | RowError:  # pyarrow has no types
    """A row of a batch, or the error for a value that Python cannot hold."""
    try:
        row: Fields = batch.slice(number, 1).to_pylist()[0]
    except (ValueError, OverflowError, import_module("pyarrow").ArrowException) as error:
        return RowError(f"it has a value that cannot be read: {error}")
    return row


def opened(path: Path) -> Any:  # pyarrow has no types
    """A Parquet file, opened. Raises InputError for other files, and without pyarrow."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{path.name} is Parquet, and pyarrow is not installed",
            hint="pip install 'decant-llm[eval]'",
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError, import_module("pyarrow").ArrowException) as error:
        raise damaged(path, error) from error


def batches_of(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches. Raises InputError where the file is damaged."""
    try:
        yield from batches
    except (OSError, ValueError, import_module("pyarrow").ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> InputError:
    return without_rows(path, "Parquet", error)


def without_rows(path: Path, kind: str, error: Exception) -> InputError:
    """The error for a file that pyarrow cannot read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(
        f"{path} cannot be read as {kind}: {reason}",
        hint="download it again; a file of 100 bytes may be a Git LFS pointer",
    )


def parquet_rows(path: Path) -> ParquetRows:
    """The rows of a Parquet file. Raises InputError where it is damaged."""
    with opened(path) as file:
        names = tuple(one.name for one in file.schema_arrow if not is_left_out(one.type))
        meta = file.metadata
        groups = tuple(meta.row_group(n).num_rows for n in range(meta.num_row_groups))
    return ParquetRows(path, names, groups)


def is_left_out(kind: Any) -> bool:  # a pyarrow type
    """Whether a column has bytes, or times, some of which Python cannot hold."""
    types = import_module("pyarrow.types")
    if types.is_temporal(kind):
        return True
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(is_left_out(kind.field(n).type) for n in range(kind.num_fields))


def parquet_label_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the numbers in each column of labels, as `datasets` keeps them in the file.

    Raises InputError where the file is damaged.
    """
    with opened(path) as file:
        return declared_names(file.schema_arrow)


def declared_names(schema: Any) -> dict[str, tuple[str, ...]]:  # pyarrow has no types
    """Names of the numbers in each column of labels, as a schema's metadata declares them."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: tuple(str(one) for one in kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
