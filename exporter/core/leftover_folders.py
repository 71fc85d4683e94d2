"""Makes temporary folders, and deletes those that killed processes left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory


def temporary_folder(folder: Path, prefix: str) -> TemporaryDirectory[str]:
    """A new folder whose name holds this process's id; deletes the folders of ended processes.

    prefix: the start of the names of such folders in `folder`.
    """
    sweep(folder, prefix)
    return TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=folder)


def sweep(folder: Path, prefix: str) -> None:
    """Delete the folders whose processes have ended."""
    for left in folder.glob(f"{prefix}*-*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:  # the process runs, as another user
            continue
