"""The folder of a report: `report.json`, `items.jsonl` and `report.html`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from exporter.core.atomic_file import atomic_write, children, read_json_object
from exporter.core.errors import InputError
from runtime.evaluation.evaluation import Case, Evaluation
from runtime.evaluation.report.html_page import page_of
from runtime.evaluation.report.interest import Gathering
from runtime.evaluation.report.stored_fields import plain, restored

REPORT, ITEMS, PAGE = "report.json", "items.jsonl", "report.html"
CASE = tuple(field.name for field in fields(Case))
VERSION = 1
"""The version of both files' layout; a reader refuses others."""
HINT = "run the evaluation again: outcomes that are cached take no time"
OFFSET = re.compile(r"([+-]\d\d)(\d\d)$")
"""The offset of a time without its colon."""
LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
"""Characters that some readers of lines take for a line's end."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A report that lies in a folder."""

    folder: Path
    evaluation: Evaluation


def write_report(folder: Path, evaluation: Evaluation, cases: Iterable[Case]) -> None:
    """Write the three files, each complete or not at all; `report.json` is the last.

    The cases are read once, and only those that the page shows are kept.
    Raises OutputError or SpaceError when the folder cannot be written to.
    """
    gathering = Gathering(evaluation)
    with atomic_write(folder / ITEMS, force=True) as file:
        for case in cases:
            file.write(json_bytes({name: getattr(case, name) for name in CASE}) + b"\n")
            gathering.add(case)
    with atomic_write(folder / PAGE, force=True) as file:
        file.write(page_of(evaluation, gathering).encode())
    with atomic_write(folder / REPORT, force=True) as file:
        file.write(json_bytes({"version": VERSION, **asdict(evaluation)}, indent=2) + b"\n")


def json_bytes(value: object, indent: int | None = None) -> bytes:
    """The value as JSON in UTF-8; half a surrogate pair, which UTF-8 lacks, is escaped."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.translate(LINE_ENDS).encode()
    except UnicodeEncodeError:
        return json.dumps(plain(value), allow_nan=False, indent=indent).encode()


def read_evaluation(folder: Path) -> Evaluation:
    """The results in a report's folder.

    Raises InputError when it is missing, damaged or of another version.
    """
    path = folder / REPORT
    found = read_json_object(path, error=InputError, hint=HINT)
    if found.get("version") != VERSION:
        raise InputError(
            f"`{path}` is of version {found.get('version')!r:.40}, and this decant reads {VERSION}",
            hint="read it with the decant that wrote it, or run the evaluation again",
        )
    try:
        return restored(Evaluation, found, REPORT)
    except InputError as error:
        raise InputError(f"`{path}` is damaged: {error.message}", hint=HINT) from error


def read_cases(folder: Path) -> Iterator[Case]:
    """The items of a report, one after the other.

    Raises InputError at a line that is damaged, and when there is no file.
    """
    path = folder / ITEMS
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield case_of(line, f"{path}:{number}")
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", hint=HINT) from error


def case_of(line: bytes, place: str) -> Case:
    """The case that a line holds. Raises InputError when it holds none."""
    try:
        return restored(Case, json.loads(line), "item")
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{place}` is not JSON: {error}", hint=HINT) from error
    except InputError as error:
        raise InputError(f"`{place}` is damaged: {error.message}", hint=HINT) from error


def list_reports(root: Path) -> tuple[list[Listed], list[str]]:
    """The reports in the folders of `root`, the newest first, and a note for each damaged one.

    Folders without `report.json` are none of ours: they are left out without a note.
    """
    found, notes = [], []
    for folder in children(root):
        if not (folder / REPORT).is_file():
            continue
        try:
            found.append(Listed(folder, read_evaluation(folder)))
        except InputError as error:
            notes.append(f"left out: {error.message}")
    return sorted(found, key=lambda one: began(one.evaluation), reverse=True), notes


def began(evaluation: Evaluation) -> float:
    """When an evaluation began, to sort by; a text that is no time comes last."""
    from datetime import datetime

    # Python 3.10 reads an offset only with its colon, which strftime's %z does not write
    text = OFFSET.sub(r"\1:\2", evaluation.began.replace("Z", "+00:00"))
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
