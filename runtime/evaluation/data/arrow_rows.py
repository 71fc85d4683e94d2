"""Rows of Arrow files, as `save_to_disk` of `datasets` writes them; also of Feather files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from exporter.core.errors import InputError
from runtime.evaluation.data.file_rows import Fields, RowError
from runtime.evaluation.data.parquet_rows import declared_names, is_left_out, row_of, without_rows

KIND = "Arrow"


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """The rows of an Arrow file; columns of bytes, such as pictures, and of times are left out."""

    path: Path
    table: Any  # pyarrow has no types
    """A memory-mapped table: the system reads the parts that are used."""
    unit: str = "row"

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def line(self, number: int) -> int:
        """The row's number, from 1."""
        return number + 1

    def scan(self, wanted: Iterable[int]) -> Iterator[tuple[int, Fields | RowError]]:
        """The wanted rows, each with its number."""
        for number in wanted:
            yield number, row_of(self.table, number)


def arrow_table(path: Path) -> Any:  # pyarrow has no types
    """The table of a stream or a file. Raises InputError for other files, and without pyarrow."""
    try:
        arrow, ipc = import_module("pyarrow"), import_module("pyarrow.ipc")
    except ImportError as error:
        raise InputError(
            f"{path.name} is {KIND}, and pyarrow is not installed",
            hint="pip install 'decant-llm[eval]'",
        ) from error
    try:
        source = arrow.memory_map(str(path))
        with suppress(arrow.ArrowInvalid):  # it is a stream
            return ipc.open_file(source).read_all()
        source.seek(0)
        table = ipc.open_stream(source).read_all()
        table.validate()
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise without_rows(path, KIND, error) from error
    return table


def arrow_rows(path: Path) -> ArrowRows:
    """The rows of an Arrow file. Raises InputError where it is damaged."""
    table = arrow_table(path)
    names = [one.name for one in table.schema if not is_left_out(one.type)]
    return ArrowRows(path, table.select(names))


def arrow_label_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the numbers in each column of labels. Raises InputError for a damaged file."""
    return declared_names(arrow_table(path).schema)
