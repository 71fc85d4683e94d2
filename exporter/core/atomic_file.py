"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from exporter.core.contents import foreign_contents
from exporter.core.errors import InputError, OutputError, SpaceError
from exporter.core.file_lock import try_lock

CHUNK = 1 << 20  # bytes per read
PARTIAL = ".partial"
"""Suffix of the hidden name of a file that is being written."""
BLOCK = 512  # bytes, the unit of st_blocks


@contextmanager
def atomic_write(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Write `path` through a temporary file beside it, renamed when the block ends without error.

    The temporary file is `.NAME.partial`, locked while it is written: a second writer stops, and
    the remains of a killed one are overwritten. An exception (Ctrl-C included) removes it and
    leaves `path` as it was. Raises OutputError when `path` exists and `force` is false, both at the
    start and before the rename.
    """
    refuse_existing(path, force=force)
    make_folder(path.parent)
    partial = partial_path(path)
    with explained(path), open_locked(partial, path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            publish(partial, path, force=force)
        finally:
            partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """The path of the temporary file through which `path` is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


IN_USE = "wait until it is done, or name another file with -o"


@contextmanager
def open_locked(
    partial: Path, path: Path, *, empty: bool = True, hint: str = IN_USE
) -> Iterator[BinaryIO]:
    """Open and lock `partial`; `empty` truncates it.

    Raises OutputError, with the hint, if it is locked already.
    """
    while True:
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        with file:
            if not try_lock(file):
                raise OutputError(
                    f"another process is writing `{path}`",
                    hint=hint,
                )
            if not is_same_file(file, partial):
                continue  # its writer renamed it between our open and our lock
            if is_same_file(file, path):
                partial.unlink()  # its writer was killed between the two halves of a rename
                continue
            if empty:
                file.truncate(0)
            yield file
            return


def is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def publish(partial: Path, path: Path, *, force: bool) -> None:
    """Rename a complete file to its final name and sync the folder.

    Without `force` an existing file is never replaced, even one created a moment ago.
    """
    if force:
        partial.replace(path)
    else:
        link_new(partial, path)
    sync_folder(path.parent)


def link_new(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`. Raises OutputError when `path` exists."""
    try:
        os.link(partial, path)  # unlike rename, it never replaces
    except OSError:  # it exists, or the file system has no hard links
        refuse_existing(path, force=False)
        partial.replace(path)
    else:
        partial.unlink()


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputError when `path` is a folder, or exists and `force` is false."""
    if path.is_dir():
        raise OutputError(f"`{path}` is a folder", hint="name a file with -o")
    if not force and path.exists():
        raise OutputError(f"`{path}` exists", hint="pass --force to replace it, or -o another name")


ELSEWHERE = "name a place that can be written to with -o"


def make_folder(folder: Path, *, hint: str = ELSEWHERE) -> None:
    """Create the folder and its parents. Raises OutputError when the system does not allow it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder `{folder}`: {error.strerror}",
            hint=hint,
        ) from error


@contextmanager
def explained(path: Path, *, hint: str = "name another place with -o") -> Iterator[None]:
    """Turn the system's errors while writing `path` into SpaceError or OutputError.

    hint: what to do where writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"the disk is full: `{path}` was not written",
                hint="free some space, or name another disk with -o",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"cannot write `{path}`: {error.strerror}", hint=hint) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system allows it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(fd)


def refuse_locked(partial: Path) -> None:
    """Raise OutputError when another process is writing the file."""
    with partial.open("rb") as file:
        if not try_lock(file):
            raise OutputError(
                f"another process is writing `{partial}`", hint="wait until it is done, or stop it"
            )


def taken_bytes(path: Path) -> int:
    """The disk space of a file in bytes; a sparse file takes less than its size."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * BLOCK)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(existing_part(folder)).free


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def is_there(path: Path) -> bool:
    """Whether a path exists; False where its folder is not readable."""
    try:
        return path.exists()
    except OSError:
        return False


def describe_missing(path: Path) -> str:
    """The message part that says why a path has no file: a dangling link, or nothing there."""
    if path.is_symlink() and not path.exists():
        return f"is a link to `{os.readlink(path)}`, which is gone"  # noqa: PTH115 - as text
    return "is missing"


def children(folder: Path) -> list[Path]:
    """The contents of a folder sorted by name; empty where it is not readable."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json_object(path: Path, *, error: type[InputError], hint: str) -> dict[str, object]:
    """Read the JSON object in `path`. Raises `error`, with the path, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise error(f"`{path}` {describe_missing(path)}", hint=hint) from missing
    except OSError as failed:
        raise error(f"cannot read `{path}`: {failed.strerror}", hint=hint) from failed
    except (ValueError, RecursionError) as broken:  # bad JSON, bad UTF-8, absurd nesting
        if found := foreign_contents(path):
            raise error(f"`{path}` {found.what}", hint=found.hint) from broken
        raise error(f"`{path}` is not JSON: {broken}", hint=hint) from broken
    if not isinstance(value, dict):
        raise error(f"`{path}` holds a {type(value).__name__}, not an object", hint=hint)
    return value


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace `path` by `value` as JSON, atomically."""
    with atomic_write(path, force=True) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
