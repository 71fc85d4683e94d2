"""The folder of a running engine: its socket, its log and short names of its adapters."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from exporter.core.file_lock import lock, try_lock

PREFIX = "decant-"
OWNER = "owner"
"""A file locked by the process that owns the folder, for as long as it lives."""
SOCKET = "s.sock"
SOCKET_PATH_MAX = 100  # bytes; sun_path holds 104 on macOS and 108 on Linux, with a final NUL


class RunFolder:
    """A new folder that only this user can enter; its path is short enough for a socket."""

    def __init__(self) -> None:
        """Create the folder, and remove folders whose owners were killed."""
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if len(os.fsencode(self.path / SOCKET)) > SOCKET_PATH_MAX:
            self.path.rmdir()
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.owner = (self.path / "owning").open("w")
        lock(self.owner)
        (self.path / "owning").rename(self.path / OWNER)  # the lock is held before sweep sees it
        sweep(self.path.parent)

    @property
    def socket(self) -> Path:
        return self.path / SOCKET

    @property
    def log(self) -> Path:
        return self.path / "log"

    def log_text(self) -> str:
        """The engine's output; empty if the folder was removed."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.owner.close()


def sweep(parent: Path) -> None:
    """Remove folders that killed processes of this user left behind."""
    for owner in parent.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError), owner.open("r+") as file:  # OSError: another user's, or removed
            if owner.stat().st_uid == os.getuid() and try_lock(file):
                shutil.rmtree(owner.parent, ignore_errors=True)


def has_sockets(folder: RunFolder) -> bool:
    """Whether the folder's file system supports Unix sockets."""
    if not hasattr(socket, "AF_UNIX"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.bind(os.fspath(folder.socket))
    except OSError:
        return False
    folder.socket.unlink()
    return True
