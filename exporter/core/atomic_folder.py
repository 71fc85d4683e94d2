"""Folders that appear complete or not at all, and resume after a killed run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.core.atomic_file import atomic_write, explained, make_folder, sync_folder
from exporter.core.errors import OutputError
from exporter.core.events import Note, Report, silent
from exporter.core.file_lock import try_lock

PLAN = ".plan"
"""Name of a file in an unfinished folder: identifies the work that fills it."""


@contextmanager
def atomic_folder(
    path: Path,
    *,
    plan: str,
    marks: tuple[str, ...],
    folders: tuple[str, ...] = (),
    force: bool = False,
    report: Report = silent,
) -> Iterator[Path]:
    """Fill a folder beside `path`, renamed to `path` when the block ends without error.

    The folder is `.NAME.partial`, locked: a second process stops. After a kill or Ctrl-C the folder
    stays: a run with the same `plan` finds its files there, a run with another plan starts empty.
    Any other exception removes the folder. The caller syncs each file that it writes.

    marks: file names that identify a folder which `force` may replace; folders: subfolders that may
    lie in it. Raises OutputError when `path` is taken, at the start and before the rename.
    """
    refuse_taken(path, marks, force=force, folders=folders)
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    with explained(path), locked_folder(partial, path):
        refuse_taken(path, marks, force=force, folders=folders)
        try:
            begin(partial, plan, report=report)
            yield partial
            (partial / PLAN).unlink()
            sync_folder(partial)
            refuse_taken(path, marks, force=force, folders=folders)
            publish_folder(partial, path)
        except KeyboardInterrupt:
            raise  # the same command resumes here
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def refuse_taken(
    path: Path, marks: tuple[str, ...], *, force: bool, folders: tuple[str, ...] = ()
) -> None:
    """Raise OutputError unless `path` is free, empty, or may be replaced."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"`{path}` is not a folder", hint="name a new folder with -o")
    if not path.exists() or not any(path.iterdir()):
        return
    if not force:
        raise OutputError(f"`{path}` exists", hint="pass --force to replace it, or -o another name")
    has_folders = any(child.is_dir() and child.name not in folders for child in path.iterdir())
    if has_folders or not any((path / mark).exists() for mark in marks):
        raise OutputError(
            f"`{path}` holds more than an exported model: it is not replaced",
            hint="name another folder with -o, or remove that one yourself",
        )


def refuse_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError when writing `path` would replace one of its inputs or lie inside one."""
    target = path.resolve()
    for folder in inputs:
        source = folder.resolve()
        if source == target or target in source.parents or source in target.parents:
            raise OutputError(
                f"`{path}` would overwrite `{folder}`, from which it is made, or lie in it",
                hint="name another folder with -o",
            )


@contextmanager
def locked_folder(partial: Path, path: Path) -> Iterator[None]:
    """Create `partial` and hold its lock. Raises OutputError when another process holds it."""
    while True:
        make_folder(partial)
        fd = os.open(partial, os.O_RDONLY)
        try:
            if not try_lock(fd):
                raise OutputError(
                    f"another process is writing `{path}`",
                    hint="wait until it is done, or name another folder with -o",
                )
            if not is_same_folder(fd, partial):
                continue  # its writer renamed it between our open and our lock
            yield
        finally:
            os.close(fd)
        return


def is_same_folder(fd: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), folder.stat())
    except FileNotFoundError:
        return False


def begin(partial: Path, plan: str, *, report: Report) -> None:
    """Keep the files of an earlier run of the same plan; delete those of any other."""
    left = list(partial.iterdir())
    before = partial / PLAN
    if before.is_file() and before.read_text(errors="replace") == plan:
        report(Note("resuming an earlier run of the same export"))
        return
    for child in left:
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    if left:
        report(Note("the remains of an earlier run belong to another export: starting over"))
    with atomic_write(before) as file:
        file.write(plan.encode())


def publish_folder(partial: Path, path: Path) -> None:
    """Rename a complete folder to its final name; the folder it replaces is deleted last."""
    replaced = path.with_name(f".{path.name}.replaced")
    if path.exists() and any(path.iterdir()):
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    partial.rename(path)  # rename replaces an empty folder
    sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)
