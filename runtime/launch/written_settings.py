"""Writes decant's values into a tool's settings file, and puts the user's file back.

The order keeps the user's file through a kill at any moment:

    1. a record in decant's data folder names the file and what will be written
    2. a copy of the file appears beside it, as NAME.before-decant
    3. the file is replaced by one with decant's values
    4. to restore, the copy is renamed over the file; then the record is deleted

If the tool or the user has changed the file since step 3, only decant's values are taken out.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import fchmod
from pathlib import Path

from exporter.core.atomic_file import atomic_write, read_json_object, write_json
from exporter.core.errors import InputError, OutputError, SpaceError
from exporter.core.file_lock import try_lock
from runtime.launch.settings_formats import Json, SettingsFormat

BACKUP = ".before-decant"
"""Suffix of the copy of the user's file."""
OWNER_ONLY = 0o600  # the mode of a file that may hold a key


@dataclass(frozen=True, slots=True)
class Record:
    """A settings file that decant has changed, and its values in it."""

    path: Path
    existed: bool
    """Whether the user had such a file."""
    sha256: str
    """The hash of the file with decant's values."""
    ours: Json
    """The values that decant has put in."""

    @property
    def backup(self) -> Path:
        return self.path.with_name(self.path.name + BACKUP)


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """The settings file of one tool, and decant's record of it."""

    tool: str
    path: Path
    """The file; links are followed."""
    format: SettingsFormat
    folder: Path
    """The folder of the records."""

    @property
    def record_path(self) -> Path:
        return self.folder / f"{self.tool}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock on this tool's settings. Raises OutputError if another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.tool}.lock").open("a") as file:
            if not try_lock(file):
                raise OutputError(
                    f"another `decant launch {self.tool}` has written `{self.path}`",
                    hint="end it first, or leave out --write",
                )
            yield

    def is_locked(self) -> bool:
        """Whether another process has written the settings and still runs."""
        try:
            with self.locked():
                return False
        except OutputError:
            return True

    def leftover(self) -> Record | None:
        """The record of settings that were written and not restored."""
        if not self.record_path.exists():
            return None
        hint = f"delete `{self.record_path}`, and look for `{self.path}{BACKUP}`"
        found = read_json_object(self.record_path, error=InputError, hint=hint)
        ours = found.get("ours")
        return Record(
            Path(str(found.get("path"))),
            bool(found.get("existed")),
            str(found.get("sha256")),
            ours if isinstance(ours, dict) else {},
        )

    def write(self, ours: Json, *, has_key: bool) -> None:
        """Write our values into the file, and keep the user's file beside it.

        has_key: whether a value is a key, which other users must not read. Raises InputError for
        a file that cannot be read, OutputError for one that cannot be written.
        """
        path = self.path.resolve()
        before = read_bytes(path)
        text = self.text_with(ours, before)
        record = Record(path, before is not None, sha256(text), ours)
        refuse_other_backup(record, before)
        write_json(self.record_path, record_json(record))
        with explained(path):
            mode = stat.S_IMODE(path.stat().st_mode) if before is not None else OWNER_ONLY
            if before is not None:
                replace(record.backup, before, mode)
            replace(path, text, OWNER_ONLY if has_key else mode)

    def text_with(self, ours: Json, before: bytes | None) -> bytes:
        """The file with our values. Raises InputError if it cannot be read."""
        try:
            return self.format.merged((before or b"").decode(), ours).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"cannot add settings to `{self.path}`: {error}",
                hint="without --write decant passes the settings to the tool and writes nothing",
            ) from error

    def restore(self) -> str:
        """Put the user's file back; returns what was done, empty if nothing was written.

        Raises OutputError if the file was changed so that decant's values cannot be taken out;
        both files stay.
        """
        record = self.leftover()
        if record is None:
            return ""
        with explained(record.path):
            done = self.undo(record)
        self.record_path.unlink(missing_ok=True)
        return done

    def undo(self, record: Record) -> str:
        path, backup = record.path, record.backup
        now, before = read_bytes(path), read_bytes(backup)
        is_ours = now is not None and sha256(now) == record.sha256
        if record.existed and before is None and not is_ours:
            return ""  # killed before the copy was made, or after it was put back
        if before is not None and now == before:
            backup.unlink()  # killed before the file was replaced
            return ""
        if before is not None and (is_ours or now is None):
            backup.replace(path)
            return f"your settings are back in `{path}`"
        if now is None:
            return ""
        if is_ours and not record.existed:
            path.unlink()
            return f"`{path}` is removed: there was none before"
        return self.take_out(record, now, before)

    def take_out(self, record: Record, now: bytes, before: bytes | None) -> str:
        """Take our values out of a file that was changed meanwhile. Raises OutputError."""
        path, backup = record.path, record.backup
        try:
            text = self.format.undone(now.decode(), record.ours, (before or b"").decode()).encode()
        except (ValueError, RecursionError) as error:
            by_hand = f"mv {backup} {path}" if before is not None else f"rm {path}"
            raise OutputError(
                f"`{path}` was changed while it had decant's settings, and cannot be corrected:"
                f" {error}",
                hint=f"correct it by hand, or undo all changes: {by_hand}",
            ) from error
        if text or before is not None:
            replace(path, text, stat.S_IMODE((backup if before else path).stat().st_mode))
        else:
            path.unlink()
        backup.unlink(missing_ok=True)
        return f"decant's settings are taken out of `{path}`; changes made meanwhile stay"


def refuse_other_backup(record: Record, before: bytes | None) -> None:
    """Raise OutputError if another copy of settings lies where ours would be written."""
    there = read_bytes(record.backup)
    if there is not None and there != before:
        raise OutputError(
            f"`{record.backup}` has settings from an earlier launch",
            hint=f"if they are yours: mv {record.backup} {record.path}; else delete it",
        )


def record_json(record: Record) -> Json:
    return {
        "path": str(record.path),
        "existed": record.existed,
        "sha256": record.sha256,
        "ours": record.ours,
    }


def read_bytes(path: Path) -> bytes | None:
    """The bytes of a file; None if there is none. Raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read `{path}`: {error.strerror}", hint="leave out --write"
        ) from error


def replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file by one with this content and mode, atomically."""
    with atomic_write(path, force=True) as file:
        fchmod(file.fileno(), mode)
        file.write(content)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of writing a settings file into OutputError with a fitting hint."""
    try:
        yield
    except SpaceError as error:
        raise OutputError(error.message, hint="free some space, or leave out --write") from error
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror}", hint="leave out --write"
        ) from error


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
