"""Keeps the results of verifications for `decant push`: one small file for each GGUF.

A record belongs to a file's first and last bytes, its size and the time of its last change: it
follows the file to another name, and counts no more once the file is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from exporter.core.atomic_file import write_json
from exporter.core.errors import DecantError
from exporter.core.gguf import SHARD, read_gguf
from exporter.core.paths import data_folder
from exporter.core.version import own_version
from exporter.verify.verification import Verification

FORMAT = 1
ENDS = 1 << 16  # bytes from either end of a file that its record depends on


@dataclass(frozen=True, slots=True)
class RecordedCheck:
    """One check: its name, its verdict in a word or two, and what it found."""

    name: str
    verdict: str
    detail: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    """The last verification of a file."""

    checks: tuple[RecordedCheck, ...]
    decant: str
    """The version that verified it."""

    @property
    def problems(self) -> list[str]:
        return [problem for check in self.checks for problem in check.problems]


def record(result: Verification) -> None:
    """Keep a verification. A folder that cannot be written to loses no more than the record."""
    checks = [
        RecordedCheck(check.name, check.verdict, check.detail, check.problems)
        for check in result.checks
    ]
    with suppress(DecantError, OSError):
        is_split = SHARD.fullmatch(result.path.name)
        shards = (read_gguf(result.path).shards if is_split else ()) or (result.path,)
        kept = {"format": FORMAT, "decant": own_version(), "checks": [asdict(c) for c in checks]}
        write_json(record_path(shards), kept)


def read_record(files: Sequence[Path]) -> VerifiedRecord | None:
    """The last verification of a model's files; None for a model that decant has not verified."""
    try:
        value = json.loads(record_path(files).read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            return None
        checks = tuple(
            RecordedCheck(
                str(one["name"]),
                str(one["verdict"]),
                str(one["detail"]),
                tuple(map(str, one["problems"])),
            )
            for one in value["checks"]
        )
        return VerifiedRecord(checks, str(value["decant"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def record_path(files: Sequence[Path]) -> Path:
    """The place of the record of a model's files, in decant's data folder."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
            digest.update(file.read(ENDS))
            file.seek(max(0, stat.st_size - ENDS))
            digest.update(file.read(ENDS))
    return data_folder(os.environ) / "verified" / f"{digest.hexdigest()[:32]}.json"
