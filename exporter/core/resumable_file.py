"""Files written tensor by tensor, which the next run resumes after a stop.

Beside `.NAME.partial` lies `.NAME.journal`: a line that says what the file is made of, one line for
each tensor whose bytes are on the disk, and a last line when the file is whole. It is deleted when
all files of the same export have their names.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from exporter.core.atomic_file import (
    explained,
    make_folder,
    open_locked,
    partial_path,
    publish,
    refuse_existing,
    sync_folder,
)
from exporter.core.errors import OutputError, SpaceError
from exporter.core.events import Note, Report, silent

SYNC_NBYTES = 256 << 20  # bytes between two syncs
SYNC_SECONDS = 3.0  # between two syncs
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A file to write, or to resume."""

    path: Path
    size: int
    """Bytes of the whole file."""
    facts: Mapping[str, str]
    """The hashes of the file's inputs, under the names by which a person knows the inputs."""

    @property
    def partial(self) -> Path:
        return partial_path(self.path)

    @property
    def journal(self) -> Path:
        return journal_path(self.path)


def journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


@dataclass(slots=True)
class Record:
    """The contents of a journal."""

    facts: Mapping[str, str] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)
    whole_at: int | None = None
    """The file's modification time in ns when it was whole."""


class Journal:
    """The locked partial file, and the names of the tensors that are whole on the disk."""

    def __init__(self, item: Unfinished, file: BinaryIO, log: BinaryIO, done: set[str]) -> None:
        self.item, self.file, self.log, self.done = item, file, log, done
        self.pending: list[str] = []
        self.nbytes, self.synced = 0, time.monotonic()

    def wrote(self, nbytes: int, finished: str | None = None) -> None:
        """Count written bytes; `finished` names the tensor that they complete."""
        self.nbytes += nbytes
        if finished is not None:
            self.pending.append(finished)
        if self.nbytes >= SYNC_NBYTES or time.monotonic() - self.synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Sync the file, then record the finished tensors."""
        if self.pending:
            os.fsync(self.file.fileno())
            self.note(*self.pending)
            self.done.update(self.pending)
            self.pending = []
        self.nbytes, self.synced = 0, time.monotonic()

    def note(self, *lines: object) -> None:
        self.log.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self.log.flush()
        os.fsync(self.log.fileno())

    def finish(self) -> None:
        """Sync the file and record that it is whole. Raises OutputError for a wrong size."""
        self.file.flush()
        os.fsync(self.file.fileno())
        stat = os.fstat(self.file.fileno())
        if stat.st_size != self.item.size:
            raise OutputError(
                f"`{self.item.path}` came to {stat.st_size} bytes instead of {self.item.size}",
                hint="another program changed it meanwhile: run the same command again",
            )
        self.note(*self.pending, {"whole_at": stat.st_mtime_ns})


@contextmanager
def journalled(
    items: Sequence[Unfinished], *, force: bool = False, report: Report = silent
) -> Iterator[dict[Path, Journal]]:
    """Open each missing file for writing; publish them all when all are whole.

    A file that an earlier run with the same facts has published is left out. After an error nothing
    is published; finished tensors stay when the same command can resume: after Ctrl-C, a kill or on
    a full disk. Raises OutputError when another process writes one of the files.
    """
    with ExitStack() as stack:
        opened: dict[Path, Journal] = {}
        try:
            for item in items:
                stack.enter_context(explained(item.path))
                if journal := stack.enter_context(open_journal(item, force=force, report=report)):
                    opened[item.path] = journal
            yield opened
            for journal in opened.values():
                journal.finish()
        except BaseException as error:
            leave(list(opened.values()), error, report)
            raise
        for item in items:
            if item.path in opened:
                publish(item.partial, item.path, force=force)
        for item in items:
            item.journal.unlink(missing_ok=True)
            item.partial.unlink(missing_ok=True)


@contextmanager
def open_journal(item: Unfinished, *, force: bool, report: Report) -> Iterator[Journal | None]:
    """Lock the file and find out which tensors it has; None when it is published already."""
    make_folder(item.path.parent)
    with open_locked(item.partial, item.path, empty=False) as file:
        before = read_journal(item.journal)
        if is_published(item, before):
            item.partial.unlink()
            report(Note(f"`{item.path.name}` is there already, whole"))
            yield None
            return
        try:
            refuse_existing(item.path, force=force)
        except OutputError:
            if not before.tensors:
                item.partial.unlink()
            raise
        done = restore(item, before, file, report=report)
        with item.journal.open("r+b" if done else "wb") as log:
            begin(item, file, log, done)
            yield Journal(item, file, log, done)


def is_published(item: Unfinished, before: Record) -> bool:
    """Whether the file has its final name and only its journal is left."""
    try:
        stat = item.path.stat()
    except OSError:
        return False
    same = before.facts == item.facts and before.whole_at == stat.st_mtime_ns
    return same and stat.st_size == item.size


def restore(item: Unfinished, before: Record, file: BinaryIO, *, report: Report) -> set[str]:
    """The tensors an earlier run finished; empty when that run had other facts."""
    if not before.tensors:
        return set()
    differing = [key for key in item.facts if before.facts.get(key) != item.facts[key]]
    if differing:
        names = " and ".join(differing)
        report(Note(f"the partial `{item.path.name}` differs in {names}: starting over"))
        return set()
    if os.fstat(file.fileno()).st_size != item.size:
        report(Note(f"the partial `{item.path.name}` is damaged: starting over"))
        return set()
    count = len(before.tensors)
    report(Note(f"resuming `{item.path.name}`: {count} of its tensors are written already"))
    return before.tensors


def read_journal(path: Path) -> Record:
    """Read a journal; a torn last line is ignored."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        facts, *rest = (json.loads(line) for line in lines)
    except (OSError, ValueError):  # absent, empty or damaged
        return Record()
    if not isinstance(facts, dict):
        return Record()
    marks = [line.get("whole_at") for line in rest if isinstance(line, dict)]
    tensors = {line for line in rest if isinstance(line, str)}
    return Record(facts, tensors, marks[-1] if marks else None)


def begin(item: Unfinished, file: BinaryIO, log: BinaryIO, done: set[str]) -> None:
    """Position the log after its last whole line; a new log gets its first line.

    The old journal is emptied on the disk first, and the bytes that it records after that.
    """
    if done:
        log.seek(item.journal.read_bytes().rfind(b"\n") + 1)
        log.truncate()
        return
    os.fsync(log.fileno())
    sync_folder(item.path.parent)
    file.truncate(0)
    file.truncate(item.size)
    log.write(json.dumps(dict(item.facts)).encode() + b"\n")
    log.flush()


def leave(journals: list[Journal], error: BaseException, report: Report) -> None:
    """Keep the files that the same command can resume; delete them otherwise.

    Raises SpaceError when the disk is full and finished tensors are kept.
    """
    is_full = isinstance(error, OSError) and error.errno in FULL
    may_go_on = is_full or isinstance(error, KeyboardInterrupt | OutputError)
    for journal in journals if may_go_on else ():
        with suppress(OSError):  # what is not recorded is written again
            journal.sync()
    n_done = sum(len(journal.done) for journal in journals)
    if not n_done or not may_go_on:
        for journal in journals:
            journal.item.journal.unlink(missing_ok=True)
            journal.item.partial.unlink(missing_ok=True)
        return
    if is_full:
        raise SpaceError(
            f"the disk is full: {n_done} tensors are kept, no file has its name yet",
            hint="free some space and run the same command again: it resumes from there",
        ) from error
    report(Note(f"{n_done} tensors are kept: the same command resumes from there"))
