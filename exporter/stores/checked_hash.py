"""Hashes large files, with progress."""

from __future__ import annotations

import hashlib
from pathlib import Path

from exporter.core.atomic_file import CHUNK
from exporter.core.errors import ModelError
from exporter.core.events import Progress, Report
from exporter.stores.other_model import OtherFile


def hashed(path: Path, name: str, *, report: Report) -> str:
    """The sha256 of a file in hexadecimal digits. Raises ModelError if it cannot be read.

    name: of the model, for the progress.
    """
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                report(Progress(f"hashing {name}", done, total, "bytes"))
    except OSError as error:
        raise ModelError(
            f"cannot read `{path}`: {error.strerror}", hint="may you read it? `ls -l` shows it"
        ) from error
    return digest.hexdigest()


def refuse_changed(file: OtherFile, name: str, again: str, *, report: Report) -> None:
    """Raise ModelError for a file whose bytes have another hash than its store states.

    name: of the model; again: how to get it again.
    """
    if file.sha256 and (found := hashed(file.path, name, report=report)) != file.sha256:
        raise ModelError(
            f"`{file.path}` is damaged: its sha256 is {found[:16]}…, and should be"
            f" {file.sha256[:16]}…",
            hint=again,
        )
