"""Outcomes kept on disk, so that an evaluation resumes where it ended, and asks nothing twice.

It is SQLite with a write-ahead log: what was put survives a kill of this process, and several
evaluations may write at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from exporter.core.atomic_file import sha256_file
from exporter.core.errors import OutputError
from exporter.core.file_lock import lock

VERSION = 1
"""Part of every key: raised when an outcome's meaning changes."""
RECENT, RECENT_CHARACTERS = 4_096, 2_000
"""How many outcomes stay in memory, too, and the characters that each has at most."""
WAIT_S = 30  # seconds for another process's write
TABLES = """
create table if not exists outcomes (key blob primary key, outcome text not null) without rowid;
create table if not exists hashes (
    path text primary key, nbytes integer, modified_ns integer, sha256 text
) without rowid;
"""


class OutcomeCache:
    """The cache in one file; several threads may use it at once."""

    def __init__(self, path: Path) -> None:
        """Open the cache's file, or create it if it is absent. Raises OutputError."""
        self.path, self.lock = path, threading.Lock()
        self.recent: dict[bytes, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.connection = self.opened()
        except sqlite3.DatabaseError as error:
            raise OutputError(
                f"`{path}` cannot be used as the cache of outcomes: {error}",
                hint="delete it: only the time for its outcomes is lost",
            ) from error

    def opened(self) -> sqlite3.Connection:
        """The connection, with the tables made. Raises sqlite3.DatabaseError.

        One process opens it at a time: SQLite does not wait if two make the log at once.
        """
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            lock(folder)
            connection = sqlite3.connect(
                self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
            )
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.executescript(TABLES)
        finally:
            os.close(folder)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.lock:
            self.connection.close()

    def get(self, key: bytes) -> Any | None:
        """The JSON value under a key, which is not to be changed; None if there is none."""
        with self.lock:
            if (found := self.recent.get(key)) is not None:
                return found
            row = self.connection.execute(
                "select outcome from outcomes where key = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            found = json.loads(row[0])
            self.keep(key, found, row[0])
        return found

    def keep(self, key: bytes, value: Any, text: str) -> None:
        """Keep a value in memory; from RECENT on, it replaces the value that was kept longest."""
        if len(text) <= RECENT_CHARACTERS:
            if len(self.recent) >= RECENT and key not in self.recent:
                del self.recent[next(iter(self.recent))]
            self.recent[key] = value

    def put(self, key: bytes, value: Mapping[str, Any]) -> None:
        """Keep a JSON value. Raises OutputError when the disk is full."""
        self.put_all({key: value})

    def put_all(self, values: Mapping[bytes, Mapping[str, Any]]) -> None:
        """Keep several JSON values by their keys, all or none. Raises OutputError."""
        rows = [(key, json.dumps(value, separators=(",", ":"))) for key, value in values.items()]
        try:
            with self.lock, self.connection:
                self.connection.execute("begin immediate")
                self.connection.executemany("insert or replace into outcomes values (?, ?)", rows)
            with self.lock:
                for key, text in rows:
                    self.keep(key, values[key], text)
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"`{self.path}` cannot be written: {error}", hint="is the disk full?"
            ) from error

    def sha256_of(self, path: Path) -> str:
        """A file's hash, computed once for each state of the file."""
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns)
        with self.lock:
            row = self.connection.execute(
                "select nbytes, modified_ns, sha256 from hashes where path = ?",
                (str(path.resolve()),),
            ).fetchone()
        if row and row[:2] == state:
            return str(row[2])
        found = sha256_file(path)
        with self.lock:
            self.connection.execute(
                "insert or replace into hashes values (?, ?, ?, ?)",
                (str(path.resolve()), *state, found),
            )
        return found


def key_of(*parts: Any) -> bytes:
    """The key of JSON values; the order of an object's keys does not matter."""
    written = json.dumps([VERSION, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode("utf-8", errors="surrogatepass")).digest()
