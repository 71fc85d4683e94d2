"""A local file on its way to a hub: it is hashed first, and must not change until it is sent."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.events import Progress, Report

REPORTED = 1 << 16  # bytes of a read from which on progress is reported


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload, and its path in the repo."""

    path: Path
    name: str


class SentFile(io.BufferedIOBase):
    """Reads a file for huggingface_hub, which hashes it once and then sends it.

    While it is sent its bytes are hashed again, and the last ones are held back if the hash
    differs: the hub then never gets a whole file of another content.
    """

    def __init__(self, file: LocalFile, *, report: Report) -> None:
        """Open the file. Raises InputError if it cannot be read."""
        self.local, self.report = file, report
        try:
            self.file = file.path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(
                f"cannot read `{file.path}`: {error.strerror}", hint="is the path right?"
            ) from error
        self.began = self.state()
        self.size = self.began[0]
        self.expected: bytes | None = None
        self.start_hash()

    def start_hash(self) -> None:
        self.hash = hashlib.sha256()
        self.hashed = 0

    def expect(self, sha256: bytes) -> None:
        """Compare what is read from now on with this hash."""
        self.expected = sha256
        self.start_hash()

    def state(self) -> tuple[int, int]:
        """Size and time of the last change, in nanoseconds."""
        stat = os.fstat(self.file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes. Raises InputError if the file changed since it was opened."""
        at = self.file.tell()
        wanted = self.size - at if size is None or size < 0 else size
        try:
            data = self.file.read(wanted) or b""
            is_same = self.state() == self.began
        except OSError as error:
            raise InputError(
                f"cannot read `{self.local.path}`: {error.strerror}", hint="is its disk in order?"
            ) from error
        if not is_same or (data and not self.fits(at, data)):
            raise InputError(
                f"`{self.local.path}` changed while it was read; nothing of it was published",
                hint="wait until nothing writes it any more, and push it again",
            )
        done = at + len(data)
        if len(data) >= REPORTED or done == self.size:
            doing = "hashing" if self.expected is None else "sending"
            self.report(Progress(f"{doing} {self.local.name}", done, self.size, "bytes"))
        return data

    def fits(self, at: int, data: bytes) -> bool:
        """Whether the bytes up to here may be the hashed ones; parts are sent in order."""
        if self.expected is None or at != self.hashed:
            return True
        self.hash.update(data)
        self.hashed += len(data)
        return self.hashed < self.size or self.hash.digest() == self.expected

    def close(self) -> None:
        self.file.close()
        super().close()
