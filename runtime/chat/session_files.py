"""The folder of conversations: one file each, to which every event is appended at once."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import Self

from exporter.core.atomic_file import explained, make_folder
from exporter.core.errors import DecantError, InputError, OutputError
from exporter.core.file_lock import try_lock
from exporter.core.near_names import did_you_mean
from runtime.chat.session import (
    Conversation,
    Event,
    Opened,
    QuestionAdded,
    after,
    all_after,
    from_json,
    to_json,
)

SUFFIX = ".jsonl"
NAME = re.compile(r"[\w.+-]{1,100}")
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


class Session:
    """A conversation, and its file if it is stored."""

    def __init__(
        self, conversation: Conversation, file: BinaryIO | None, *, had_question: bool = False
    ) -> None:
        """Continue `conversation`; its earlier events must already be in `file`, if given."""
        self.conversation, self.file = conversation, file
        self.events: list[Event] = []
        """The events so far, while there is no file."""
        self.had_question = had_question
        """Whether there was ever a question, even one that was taken back."""

    def record(self, *events: Event) -> None:
        """Apply events; they are in the file when this returns.

        Raises SpaceError or OutputError, and then leaves the conversation unchanged.
        """
        conversation = self.conversation
        for event in events:
            conversation = after(conversation, event)
        if self.file is None:
            self.events += events
        else:
            append(self.file, events)
        self.conversation = conversation
        self.had_question = self.had_question or has_question(events)

    def keep(self, folder: Path) -> None:
        """Begin to store a conversation that is not stored yet."""
        if self.file is None:
            file = new_file(folder, self.conversation.id)
            try:
                append(file, self.events)
            except DecantError:  # the events are still here, and can be stored elsewhere or later
                Path(os.fsdecode(file.name)).unlink()
                file.close()
                raise
            self.file, self.events = file, []

    def close(self) -> None:
        """Close the file, and remove it if nothing was asked."""
        if self.file is None:
            return
        path = Path(os.fsdecode(self.file.name))
        if not self.had_question and not self.conversation.name:
            path.unlink(missing_ok=True)
        self.file.close()
        self.file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def has_question(events: Sequence[Event]) -> bool:
    return any(isinstance(event, QuestionAdded) for event in events)


def new_session(
    folder: Path | None, model: str, source: Mapping[str, Any] | None = None
) -> Session:
    """Begin a conversation, stored in `folder` if that is given."""
    moment = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(moment))
    opened = Opened(f"{stamp}-{secrets.token_hex(2)}", model, round(moment, 3), source or {})
    session = Session(Conversation(), None)
    session.record(opened)
    if folder is not None:
        session.keep(folder)
    return session


def new_file(folder: Path, ident: str) -> BinaryIO:
    path = folder / f"{ident}{SUFFIX}"
    make_folder(folder)
    with explained(path):
        folder.chmod(PRIVATE_FOLDER)
        return locked(open(path, "x+b", buffering=0, opener=private), path)


def private(path: str, flags: int) -> int:
    """Open for appending, with access for this user only."""
    return os.open(path, flags | os.O_APPEND, PRIVATE_FILE)


def locked(file: BinaryIO, path: Path) -> BinaryIO:
    """Lock a session's file while it is open. Raises OutputError if it is in use."""
    if not try_lock(file):
        file.close()
        raise OutputError(
            f"the session `{path.stem}` is open in another window",
            hint="continue it there, or close it first",
        )
    return file


def append(file: BinaryIO, events: Sequence[Event]) -> None:
    """Append events to the file: all of them or, if the disk is full, none."""
    lines = "".join(json.dumps(to_json(event), ensure_ascii=False) + "\n" for event in events)
    data = lines.encode("utf-8", errors="replace")
    size = os.fstat(file.fileno()).st_size
    with explained(Path(os.fsdecode(file.name))):
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def resume(path: Path) -> Session:
    """Continue the conversation in a file.

    An incomplete last line, left by a killed process or a power cut, is removed. Raises
    InputError for a file that is damaged before that, OutputError for one that is in use.
    """
    with explained(path):
        file = locked(open(path, "r+b", buffering=0, opener=private), path)  # noqa: SIM115
    try:
        events, size = read_events(path)
        os.ftruncate(file.fileno(), size)
    except BaseException:
        file.close()
        raise
    return Session(all_after(events), file, had_question=has_question(events))


def read_events(path: Path) -> tuple[list[Event], int]:
    """The events in a file, and the bytes of its complete lines. Raises InputError."""
    events: list[Event] = []
    size = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            events.append(from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the session `{path}` is damaged in line {number}: {error}",
                hint="was it written by a newer decant? Else repair or delete that line",
            ) from error
        size += len(line)
    if not events or not isinstance(events[0], Opened):
        raise InputError(
            f"`{path}` is not a session of decant", hint="`decant chat --list` lists them"
        )
    return events, size


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of `decant chat --list`."""

    id: str
    name: str
    model: str
    turns: int
    title: str
    """The beginning of its first question."""
    modified: float
    """Seconds since 1970."""
    path: Path


def list_sessions(folder: Path) -> list[Summary]:
    """The stored conversations, the newest first; damaged ones are left out."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        if not path.is_file():  # opening a pipe would block
            continue
        try:
            conversation = all_after(read_events(path)[0])
        except (InputError, OSError):
            continue
        first = conversation.turns[0].question if conversation.turns else ""
        found.append(
            Summary(
                conversation.id,
                conversation.name,
                conversation.model,
                len(conversation.turns),
                " ".join(first.split()),
                path.stat().st_mtime,
                path,
            )
        )
    return sorted(found, key=lambda summary: summary.modified, reverse=True)


def find_session(folder: Path, text: str | None) -> Path:
    """The file of the session with this name, id or beginning of an id; None: the newest.

    Raises InputError if there is none, or if several match.
    """
    kept = list_sessions(folder)
    if text is None:
        found = kept[:1]
    else:
        found = [one for one in kept if text in (one.id, one.name)] or [
            one for one in kept if one.id.startswith(text)
        ]
    if not found:
        what = f"no session {text!r}" if text else "no session to continue"
        names = [name for one in kept for name in (one.name, one.id) if name]
        raise InputError(
            f"there is {what} in `{folder}`",
            hint=did_you_mean(text or "", names, "`decant chat --list` lists them", most=3),
        )
    if len(found) > 1:
        raise InputError(
            f"{text!r} means {len(found)} sessions: {', '.join(one.id for one in found[:5])}",
            hint="name one by its id",
        )
    return found[0].path


def session_to_delete(folder: Path, text: str) -> Path:
    """The file of the session with exactly this id or name, also of a damaged one.

    Raises InputError if there is none: the beginning of an id is not enough.
    """
    kept = list_sessions(folder)
    for one in kept:
        if text in (one.id, one.name):
            return one.path
    paths = {path.stem: path for path in folder.glob(f"*{SUFFIX}") if path.is_file()}
    if text in paths:
        return paths[text]
    names = [*(one.name for one in kept if one.name), *paths]
    otherwise = "give its whole id or its name, as `decant chat --list` shows them"
    raise InputError(
        f"there is no session {text!r} in `{folder}`",
        hint=did_you_mean(text, names, otherwise, most=3),
    )


def delete_session(path: Path) -> None:
    """Delete a session's file. Raises OutputError if it is open in another window."""
    with explained(path), locked(path.open("r+b", buffering=0), path):
        path.unlink()


def check_name(name: str, folder: Path, own: str) -> None:
    """Raise InputError for a malformed name, or one that another session has."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a name for a session", hint="letters, digits and . _ + - only"
        )
    for kept in list_sessions(folder):
        if name in (kept.name, kept.id) and kept.id != own:
            raise InputError(
                f"the session {kept.id} already has the name {name!r}", hint="choose another name"
            )
