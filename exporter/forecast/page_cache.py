"""The part of some files that must come from the disk, and the disk's rate."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROBES = 256  # pages looked at, over all files
PAGE = 4096  # bytes
READ_NBYTES = 8 << 20  # bytes of one reading
READ_S = 0.1  # seconds of reading, to measure the disk
BLOCK = 512  # bytes, the unit of st_blocks


def places(paths: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Offsets in the files, at even distances."""
    sizes = [path.stat().st_size for path in paths]
    step = max(PAGE, sum(sizes) // PROBES)
    for path, size in zip(paths, sizes, strict=True):
        yield from ((path, at) for at in range(min(step // 2, size // 2), size, step))


def uncached(paths: Sequence[Path]) -> tuple[float, list[tuple[Path, int]]]:
    """The share of the files that is not in memory, and places of it.

    A hole in a file counts as in memory. Where the system does not say, all does.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return 0.0, []
    found, cold = 0, []
    for path, at in places([path for path in paths if not is_sparse(path)]):
        found += 1
        if not is_cached(path, at):
            cold.append((path, at))
    return (len(cold) / found if found else 0.0), cold


def is_sparse(path: Path) -> bool:
    """Whether most of a file is a hole."""
    stat = path.stat()
    return stat.st_blocks * BLOCK < stat.st_size // 2


def is_cached(path: Path, at: int) -> bool:
    with path.open("rb", buffering=0) as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # the file system cannot say
            return True
    return True


def read_s(cold: Sequence[tuple[Path, int]]) -> float:
    """Seconds for a byte that is read from the disk, measured at some places."""
    buffer = bytearray(READ_NBYTES)
    began, done = time.perf_counter(), 0
    for path, at in cold:
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            done += file.readinto(buffer) or 0
        if time.perf_counter() - began > READ_S:
            break
    return (time.perf_counter() - began) / max(done, 1)
