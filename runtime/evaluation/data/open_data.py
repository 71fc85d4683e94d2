"""Opens a user's data: finds its files, its layout and its bad rows, and chooses the items."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.near_names import near_files
from runtime.evaluation.data.arrow_rows import arrow_rows
from runtime.evaluation.data.csv_rows import csv_rows
from runtime.evaluation.data.dataset import SHOWN, BadRow, Dataset, Files, RowReader
from runtime.evaluation.data.file_rows import Fields, RowError, Rows
from runtime.evaluation.data.front_matter import readme_settings, text_of_file
from runtime.evaluation.data.hub_dataset import dataset_ref, is_dataset_name
from runtime.evaluation.data.json_rows import json_rows
from runtime.evaluation.data.label_names import label_names
from runtime.evaluation.data.layouts import find_layout
from runtime.evaluation.data.parquet_rows import parquet_rows
from runtime.evaluation.data.seeded_sample import seeded_sample
from runtime.evaluation.data.split_files import (
    OF_PYARROW,
    SUFFIXES,
    Split,
    find_split,
    without_packing,
)
from runtime.evaluation.data.task_of_data import ReferenceCount, task_of
from runtime.evaluation.data.utf8_file import Scratch
from runtime.evaluation.evaluation import DataFacts

Pull = Callable[[str, "str | None"], Path]
"""Downloads a hub dataset's split, and returns the folder with its files."""
FIRST = 100  # rows by which the layout is recognized
BAD = "correct it, or leave such rows out with --skip-bad"


@dataclass(frozen=True, slots=True)
class DataRequest:
    """The data that is wanted, and how its rows are read."""

    source: str
    """A file, a folder of files, or a hub dataset: ORG/NAME[@REVISION][:CONFIG]."""
    layout: str | None = None
    """The name of the layout; None to recognize it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns by role, such as {"answer": "my_answer"}."""
    split: str | None = None
    """The name of a split of a folder or a hub dataset."""
    held_out: float | None = None
    """Share of the rows to measure, chosen by the seed and independent of the limit."""
    limit: int | None = None
    """Measure a sample of this many rows."""
    seed: int = 0
    skip_bad: bool = False
    """Leave out rows that cannot be used."""
    system: str | None = None
    """A system message for conversations without one."""


@dataclass(slots=True)
class FirstPass:
    """Facts from reading all rows once."""

    good: array[int] = field(default_factory=lambda: array("q"))
    """Numbers of the rows that can be used."""
    bad: list[BadRow] = field(default_factory=list)
    """The first of the rows that cannot be used."""
    n_bad: int = 0
    references: ReferenceCount = field(default_factory=ReferenceCount)
    after: int = 0
    """Rows with turns after the answer."""
    choices: int = 0
    """Rows with options, whose letters are the answers."""
    tools: int = 0
    """Rows that declare tools."""


def open_data(request: DataRequest, *, pull: Pull | None = None) -> Dataset:
    """Open data: all rows are read once and checked, and items are read again when wanted.

    Raises InputError for data that cannot be read or understood, and for bad rows unless
    `request.skip_bad` leaves them out; for a hub dataset also the errors of `pull`.
    """
    check_request(request)
    paths, split, folder = find_files(request, pull)
    scratch = Scratch()
    files = Files([open_rows(path, scratch) for path in paths])
    if not len(files):
        raise InputError(f"{request.source} is empty", hint="it needs at least one row")
    layout = find_layout(first_rows(files, request), request.layout, request.columns)
    names = label_names(layout.column("label"), paths, folder) if layout.column("label") else ()
    id_column = request.columns.get("id", "id")
    reader = RowReader(layout, names, request.system or "", id_column)
    found = first_pass(files, reader)
    refuse_bad(found, request)
    chosen = choose(found.good, request)
    task = task_of(layout.name, found.references)
    labels = (names or found.references.distinct) if task == "labels" else ()
    facts = DataFacts(
        name=request.source,
        task=task,
        layout=layout.words,
        rows=len(files),
        items=len(chosen),
        skipped=found.n_bad,
        labels=labels,
        notes=tuple(notes(found, request, split)),
    )
    return Dataset(
        files, reader, chosen, facts, split=split.name if split else None, skipped=found.bad
    )


def check_request(request: DataRequest) -> None:
    """Check the numbers of a request. Raises InputError."""
    if request.held_out is not None and not 0 < request.held_out < 1:
        raise InputError(
            f"--split {request.held_out} is no share of the rows",
            hint="a number between 0 and 1, such as 0.1, or a split's name",
        )
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit {request.limit} leaves no rows", hint="at least 1")


def find_files(
    request: DataRequest, pull: Pull | None
) -> tuple[list[Path], Split | None, Path | None]:
    """The files of the data; for a folder or a hub dataset also the split and the folder.

    Raises InputError for data that does not exist, and for splits of a single file.
    """
    path = Path(request.source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise InputError(
            f"{request.source} cannot be read: {error.strerror}", hint="check the path"
        ) from error
    if is_file:
        if request.split:
            raise InputError(
                f"{request.source} is one file: it has no split {request.split!r}",
                hint="--split 0.1 measures a tenth of its rows",
            )
        return [path], None, None
    config = None
    if not is_folder:
        is_path = request.source.endswith(SUFFIXES) and "://" not in request.source
        if pull is None or is_path or not is_dataset_name(request.source):
            raise InputError(
                f"there is no file or folder {request.source}",
                hint=near_files(path, "check the path; a dataset on the hub is named as ORG/NAME"),
            )
        ref, config = dataset_ref(request.source)
        path = pull(request.source, request.split)
        if ref.file:
            return [path / ref.file], None, path
    split = split_in_folder(path, request, config)
    return [path / name for name in split.files], split, path


def split_in_folder(folder: Path, request: DataRequest, config: str | None) -> Split:
    """The split in a folder. Raises InputError where it is absent or has to be chosen."""
    paths = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    settings = readme_settings(text_of_file(folder / "README.md"))
    try:
        return find_split(paths, settings, request.split, config)
    except InputError as error:
        raise InputError(f"{request.source}: {error.message}", hint=error.hint) from error


def open_rows(path: Path, scratch: Scratch) -> Rows:
    """The rows of a file, by the end of its name. Raises InputError for other files."""
    name = path.name.lower()
    stem = without_packing(name)
    if not stem.endswith(SUFFIXES) or (stem != name and stem.endswith(OF_PYARROW)):
        raise InputError(
            f"{path} is not data that decant reads",
            hint="the name of a file ends in .jsonl, .json, .csv, .tsv, .parquet or .arrow",
        )
    if name.endswith(".parquet"):
        return parquet_rows(path)
    if name.endswith(".arrow"):
        return arrow_rows(path)
    is_table = stem.endswith((".csv", ".tsv"))
    return csv_rows(path, scratch) if is_table else json_rows(path, scratch)


def first_rows(files: Files, request: DataRequest) -> Sequence[Fields]:
    """The first rows that can be parsed. Raises InputError where no row can."""
    rows: list[Fields] = []
    first: BadRow | None = None
    for number, row in files.scan(range(len(files))):
        if isinstance(row, RowError):
            first = first or files.bad_row(number, row)
        else:
            rows.append(row)
        if len(rows) == FIRST:
            break
    if not rows:
        assert first is not None
        raise InputError(
            f"no row of {request.source} can be read: {first.words}",
            hint=first.hint or "a row is a JSON object, or a line below the header of a CSV",
        )
    return rows


def first_pass(files: Files, reader: RowReader) -> FirstPass:
    """Read all rows once, and note which are bad."""
    found = FirstPass()
    hashes = array("Q")
    for number, row in files.scan(range(len(files))):
        try:
            if isinstance(row, RowError):
                raise row
            parts = reader.parts(row)
            name = reader.id_of(row, number + 1)
        except RowError as error:
            count_bad(found, files.bad_row(number, error))
            continue
        found.good.append(number)
        if reader.id_column:
            hashes.append(hash_of(name))
        found.references.add(parts.references)
        found.after += parts.after > 0
        found.choices += parts.is_choice
        found.tools += bool(row.get("tools"))
    if hashes:
        drop_repeated(found, files, reader, hashes)
    return found


def count_bad(found: FirstPass, row: BadRow) -> None:
    found.n_bad += 1
    if len(found.bad) < SHOWN:
        found.bad.append(row)


def hash_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def drop_repeated(found: FirstPass, files: Files, reader: RowReader, hashes: Sequence[int]) -> None:
    """Count a row as bad if an earlier row has its id."""
    repeated = list(repeated_places(hashes))
    if not repeated:
        return
    dropped: set[int] = set()
    for place, earlier in repeated:
        reason = "its id is that of an earlier row"
        if len(found.bad) < SHOWN:
            reason = repeated_id(files, reader, found.good[place], found.good[earlier])
        hint = f"{BAD}; --column id= names rows by their place"
        count_bad(found, files.bad_row(found.good[place], RowError(reason, hint=hint)))
        dropped.add(place)
    found.bad.sort(key=lambda row: row.line if len(files.files) == 1 else 0)
    found.good = array("q", [n for place, n in enumerate(found.good) if place not in dropped])


def repeated_id(files: Files, reader: RowReader, number: int, earlier: int) -> str:
    """The reason why a row is bad: an earlier row has its id."""
    row = next(files.scan([number]))[1]
    name = "" if isinstance(row, RowError) else reader.id_of(row, number + 1)
    file, line = files.place(earlier)
    other = f" of {file.path.name}" if len(files.files) > 1 else ""
    return f"its id {name[:60]!r} is also that of {file.unit} {line}{other}"


def repeated_places(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each place whose value an earlier place has, and the first place with that value."""
    import numpy as np

    values = np.asarray(hashes, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    if begins.all():
        return
    firsts = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    pairs = zip(order[~begins].tolist(), firsts[~begins].tolist(), strict=True)
    yield from sorted(pairs)


def refuse_bad(found: FirstPass, request: DataRequest) -> None:
    """Raise InputError for bad rows, unless they are to be left out and others remain."""
    if not found.n_bad or (request.skip_bad and found.good):
        return
    row = found.bad[0]
    more = f" (and {found.n_bad - 1} more)" if found.n_bad > 1 else ""
    if not found.good:
        raise InputError(
            f"no row of {request.source} can be used: {row.words}{more}",
            hint=row.hint or "check the layout, or name columns: --column answer=NAME",
        )
    raise InputError(
        row.words + more, hint=f"{row.hint}, or --skip-bad" if row.hint and BAD not in row.hint
        else row.hint or BAD,
    )  # fmt: skip


def choose(good: Sequence[int], request: DataRequest) -> Sequence[int]:
    """The rows to measure: the held-out share, or a sample of it up to the limit."""
    if request.held_out is not None:
        count = max(1, round(request.held_out * len(good)))
        good = seeded_sample(good, count, request.seed, "held out")
    if request.limit is not None:
        good = seeded_sample(good, request.limit, request.seed, "limit")
    return good


def notes(found: FirstPass, request: DataRequest, split: Split | None) -> Iterator[str]:
    """Sentences on how the data was read."""
    if split and split.note:
        yield split.note
    if request.held_out is not None:
        yield (
            f"A share of {request.held_out:g} of the rows was chosen by seed {request.seed}: it is"
            " held out only if training left out the same rows."
        )
    if found.after:
        yield f"{found.after} rows have turns after the last answer, which were left out."
    if found.choices:
        yield f"{found.choices} rows have choices, which were listed: letters are the answers."
    if found.tools:
        yield f"{found.tools} rows declare tools, which the models were not offered."
