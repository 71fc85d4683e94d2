"""Tells bases of one name apart by samples of their weights: trainers save under the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from exporter.core.gguf import GGUFFile
from exporter.core.paths import repo_at

WEIGHTS = frozenset((".safetensors", ".bin", ".pt", ".pth", ".distcp", ".gguf"))
SAMPLE_NBYTES = 512
"""Bytes of a sample."""
EVERY_NBYTES = 4 << 20
"""One sample in so many bytes, so that each matrix of this size is in one."""
LEAST = 64
"""Samples of a smaller file."""
NAME, COMMIT, SAMPLE = "decant.base", "decant.base.commit", "decant.base.sample"
"""The keys of a GGUF's header."""


def weights_sample(base: Path) -> str:
    """The SHA-256, in hex, of samples of a base's weights, with their files' names and sizes.

    base: a folder or a GGUF. Empty if the folder has no weights. Raises OSError.
    """
    found = base.iterdir() if base.is_dir() else [base]
    files = sorted(path for path in found if path.suffix in WEIGHTS and path.is_file())
    states = [(path, path.stat()) for path in files]
    marks = tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in states)
    return sample_of(marks) if marks else ""


@lru_cache(maxsize=16)
def sample_of(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """The sample of files in these states: path, bytes, time of the last change in ns, inode."""
    digest = hashlib.sha256()
    for path, size, *_ in files:
        digest.update(f"{path.name} {size}\n".encode())
        for sample in samples(path):
            digest.update(sample)
    return digest.hexdigest()


def samples(path: Path) -> Iterator[bytes]:
    """Bytes of a file at equal distances."""
    size = path.stat().st_size
    step = max(min(EVERY_NBYTES, size // LEAST), SAMPLE_NBYTES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            yield file.read(SAMPLE_NBYTES)


def is_made_of(header: GGUFFile, name: str, base: Path) -> bool:
    """Whether a GGUF was made of this base: by its commit, else by a sample of its weights.

    A file that was made of a commit is taken for that of a folder of the same name outside the
    hub's cache.
    """
    if header.text(NAME) != name:
        return False
    ours, theirs = repo_at(base)[1], header.text(COMMIT)
    if ours and theirs:
        return ours == theirs
    if sample := header.text(SAMPLE):
        return sample == weights_sample(base)
    return bool(theirs)


def are_of_one_base(one: GGUFFile, other: GGUFFile) -> bool:
    """Whether two GGUFs were made of one base, as far as their headers say."""
    if one.text(NAME) is None or one.text(NAME) != other.text(NAME):
        return False
    for key in (COMMIT, SAMPLE):
        here, there = one.text(key), other.text(key)
        if here and there:
            return here == there
    return True
