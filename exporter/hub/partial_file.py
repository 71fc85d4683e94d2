"""A partly downloaded file: its bytes, and a journal of the ones that are written.

The journal counts, for each cell of the file, the bytes written from the cell's start. It is
updated after the data, through a memory map, so that killing the process at any moment loses
nothing that was counted. Parts are named by their hash: any later process can resume them from any
endpoint.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import Self

from exporter.core.atomic_file import sync_folder
from exporter.core.errors import OutputError, SpaceError
from exporter.core.file_lock import try_lock
from exporter.core.paths import size_text
from exporter.hub.pull_plan import PlannedFile
from exporter.hub.timeouts import Limits

MAGIC = b"decant part 1\n".ljust(16, b"\0")
HEADER = struct.Struct("<16sQII")  # magic, bytes of the file, bytes of a cell, 0
READ = 1 << 20  # bytes per read
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: 4 GB on FAT, or a ulimit


class Part:
    """A partly downloaded file, in memory or on disk; several threads may write to it."""

    def __init__(self, file: PlannedFile, cell: int, done: memoryview) -> None:
        """done: written bytes of each cell, shape (cells,); a view of the journal where one
        exists.
        """
        self.file, self.cell, self.done = file, cell, done
        self.hasher = file.hasher()
        self.hashed = 0

    def read_into(self, buffer: memoryview, offset: int) -> int:
        raise NotImplementedError

    def store(self, offset: int, chunks: Sequence[bytes], nbytes: int) -> None:
        raise NotImplementedError

    def write(self, offset: int, chunks: Sequence[bytes], nbytes: int) -> None:
        """Store the chunks, then count them; a cell has one writer at a time and no gaps."""
        self.store(offset, chunks, nbytes)
        end = offset + nbytes
        for cell in range(offset // self.cell, -(-end // self.cell)):
            self.done[cell] = min(end - cell * self.cell, self.cell)

    def cell_size(self, cell: int) -> int:
        return min(self.cell, self.file.size - cell * self.cell)

    def is_full(self, cell: int) -> bool:
        return self.done[cell] == self.cell_size(cell)

    @property
    def nbytes(self) -> int:
        return sum(self.done)

    def hash_prefix(self) -> None:
        """Update the hash up to the first gap."""
        buffer = memoryview(bytearray(min(READ, self.file.size)))
        while self.hashed < self.file.size:
            cell, inside = divmod(self.hashed, self.cell)
            count = min(self.done[cell] - inside, READ)
            if count <= 0:
                return
            count = self.read_into(buffer[:count], self.hashed)
            self.hasher.update(buffer[:count])
            self.hashed += count

    def is_right(self) -> bool:
        """Whether the file is complete and has the planned hash."""
        self.hash_prefix()
        return self.hashed == self.file.size and self.hasher.hexdigest() == self.file.etag

    def clear(self) -> None:
        """Reset the part to no bytes at all."""
        for cell in range(len(self.done)):
            self.done[cell] = 0
        self.hasher, self.hashed = self.file.hasher(), 0

    def publish(self, target: Path) -> None:
        raise NotImplementedError

    def discard(self) -> None:
        """Close the part and delete its files."""
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class SmallPart(Part):
    """A small file, kept in memory until it is verified."""

    def __init__(self, file: PlannedFile, folder: Path) -> None:
        """folder: place of the temporary file that becomes the published one."""
        cells = memoryview(bytearray(4 if file.size else 0)).cast("I")
        super().__init__(file, max(file.size, 1), cells)
        self.data = bytearray(file.size)
        self.folder = folder

    def read_into(self, buffer: memoryview, offset: int) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)

    def store(self, offset: int, chunks: Sequence[bytes], nbytes: int) -> None:
        self.data[offset : offset + nbytes] = b"".join(chunks)

    def publish(self, target: Path) -> None:
        put(target, self.data, self.folder)

    def close(self) -> None:
        pass


class DiskPart(Part):
    """A part on disk, locked by this process."""

    def __init__(self, file: PlannedFile, folder: Path, limits: Limits, descriptor: int) -> None:
        self.path, self.journal_path = part_paths(folder, file)
        self.descriptor, self.limits = descriptor, limits
        self.journal = self.open_journal(file)
        _, _, cell, _ = HEADER.unpack_from(self.journal)
        super().__init__(file, cell, memoryview(self.journal)[HEADER.size :].cast("I"))
        self.unsynced = 0
        self.inherited = self.nbytes

    @classmethod
    def open(cls, file: PlannedFile, folder: Path, limits: Limits) -> Self | None:
        """Open the part and keep its bytes; None while another process holds it.

        Raises OutputError or SpaceError when the disk does not allow it.
        """
        path, _ = part_paths(folder, file)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise disk_error(error, path, 0) from error
        try:
            # one of them is false if another process has the part, or has just published it
            if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return cls(file, folder, limits, descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise disk_error(error, path, 0) from error
        os.close(descriptor)
        return None

    def open_journal(self, file: PlannedFile) -> mmap.mmap:
        """The part's journal, replaced by an empty one if it does not fit."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self.journal_path, flags, 0o666), "r+b") as journal:
            if not self.fits(journal.read(), file):
                cells = -(-file.size // self.limits.cell)
                journal.seek(0)
                journal.truncate(0)
                header = HEADER.pack(MAGIC, file.size, self.limits.cell, 0)
                journal.write(header + bytes(4 * cells))  # no holes: a mapped hole could trap
                journal.flush()
                os.ftruncate(self.descriptor, 0)
            return mmap.mmap(journal.fileno(), 0)

    def fits(self, content: bytes, file: PlannedFile) -> bool:
        """Whether a journal belongs to this file and counts no byte that the part lacks."""
        if len(content) < HEADER.size:
            return False
        magic, size, cell, _ = HEADER.unpack_from(content)
        cells = content[HEADER.size :]
        if magic != MAGIC or size != file.size or not cell or len(cells) != 4 * -(-size // cell):
            return False
        end = os.fstat(self.descriptor).st_size
        return all(
            count <= min(cell, size - index * cell) and (not count or index * cell + count <= end)
            for index, (count,) in enumerate(struct.iter_unpack("<I", cells))
        )

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = os.pread(self.descriptor, len(buffer), offset)  # preadv is not on every macOS
        buffer[: len(data)] = data
        return len(data)

    def store(self, offset: int, chunks: Sequence[bytes], nbytes: int) -> None:
        try:
            rest = memoryview(b"".join(chunks))
            while rest:  # a nearly full disk writes only a part
                rest = rest[os.pwrite(self.descriptor, rest, offset + nbytes - len(rest)) :]
        except OSError as error:
            raise disk_error(error, self.path, self.nbytes) from error
        self.unsynced += nbytes
        if self.unsynced >= self.limits.sync_every:
            self.unsynced = 0
            self.sync()

    def sync(self) -> None:
        """Sync the data, then the journal: a power cut must not leave them in the other order."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise disk_error(error, self.path, self.nbytes) from error
        self.journal.flush()

    def publish(self, target: Path) -> None:
        """Move the verified part to its place and sync the folder."""
        try:
            os.ftruncate(self.descriptor, self.file.size)
            os.fsync(self.descriptor)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
            self.journal_path.unlink(missing_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise disk_error(error, target, self.nbytes) from error

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the lock. The journal stays mapped until the last writing thread ends."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def put(target: Path, content: bytes | bytearray, folder: Path) -> None:
    """Write a small file through a temporary one in `folder`; the last of several writers wins."""
    path = folder / f"{target.name[:100]}.{os.getpid()}.{threading.get_ident()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
            file.write(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(error, target, 0) from error


def part_paths(folder: Path, file: PlannedFile) -> tuple[Path, Path]:
    return folder / f"{file.etag}.part", folder / f"{file.etag}.journal"


def kept_bytes(file: PlannedFile, folder: Path) -> int:
    """Bytes that a part already has, even if another process is writing it."""
    _, path = part_paths(folder, file)
    try:
        content = path.read_bytes()
    except OSError:
        return 0
    return sum(cells_of(content, file))


def cells_of(content: bytes, file: PlannedFile) -> Iterator[int]:
    if len(content) >= HEADER.size and HEADER.unpack_from(content)[:2] == (MAGIC, file.size):
        cells = content[HEADER.size :]
        yield from (count for (count,) in struct.iter_unpack("<I", cells[: len(cells) & ~3]))


def disk_error(error: OSError, path: Path, kept: int) -> OutputError | SpaceError:
    """Turn a system error while writing `path` into SpaceError or OutputError."""
    if error.errno in FULL:
        return SpaceError(
            f"the disk is full: `{path.parent}` takes no more",
            hint=f"{size_text(kept)} of the file are kept; free some space, and run it again",
        )
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
        return OutputError(
            f"`{path}` is not a plain file in a plain folder: {error.strerror}",
            hint="remove what is in the way",
        )
    return OutputError(
        f"cannot write `{path}`: {error.strerror}", hint="name another place with HF_HOME"
    )
