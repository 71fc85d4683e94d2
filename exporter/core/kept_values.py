"""Values that take long to make, kept on disk as JSON until one of their origins changes.

A file holds its own hash, so that a damaged one counts as missing. A folder that cannot be written
to loses no more than the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import PARTIAL, atomic_write
from exporter.core.errors import DecantError
from exporter.core.version import code_hash, version

HASH_NBYTES = 64  # bytes of a hash in hexadecimal digits, before the value
LEFT_S = 3600  # seconds after which a file is no longer being written
LIBRARIES = ("jinja2", "sentencepiece", "tokenizers", "transformers")


class KeptValues:
    """The values of one kind in a folder."""

    def __init__(self, folder: Path, kind: str, most: int) -> None:
        """kind: the suffix of their files; most: number of files; the oldest are deleted."""
        self.folder, self.kind, self.most = folder, kind, most

    def path(self, origins: Iterable[object]) -> Path:
        """The place of a value made from `origins` by this decant with the libraries there are."""
        parts = [code_hash(), *map(version, LIBRARIES), *map(str, origins)]
        text = json.dumps(parts)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.{self.kind}"

    def read(self, path: Path) -> Any:
        """The value; None if there is none, or not a whole one."""
        try:
            content = path.read_bytes()
            digest, text = content[:HASH_NBYTES], content[HASH_NBYTES:]
            if hashlib.sha256(text).hexdigest().encode() != digest:
                return None
            value = json.loads(text)
            os.utime(path)
        except (OSError, ValueError, RecursionError):
            return None
        return value

    def write(self, path: Path, value: object) -> None:
        """Keep a value that JSON can hold, and delete the oldest beyond the number."""
        text = json.dumps(value).encode()
        with suppress(DecantError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, force=True) as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + text)
            found = self.folder.glob(f"*.{self.kind}")
            kept = sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)
            for old in kept[self.most :]:
                old.unlink()
            for left in self.folder.glob(f".*.{self.kind}{PARTIAL}"):  # by a killed process
                if left.stat().st_mtime < time.time() - LEFT_S:
                    left.unlink()
