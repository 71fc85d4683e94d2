"""Checks, before an export pulls its base, that the disk has room for the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import existing_part, free_bytes
from exporter.core.errors import SpaceError
from exporter.core.events import Report, Warn
from exporter.core.paths import size_text

if TYPE_CHECKING:
    from exporter.hub.pull import Pulled

WEIGHTS = (".safetensors", ".bin", ".gguf")
STORED_BITS, MOST_STORED_BITS = 16, 32
"""Bits of a base's value: the usual number, and the largest."""
BITS = re.compile(r"\d+")


def check_room(
    pulls: Sequence[Pulled], folder: Path, quants: Sequence[str], report: Report
) -> None:
    """Raise SpaceError if pull and result together do not fit on the disk, whatever the type.

    Warns if they do not fit for a base of 16 bits a value. The plan compares the exact sizes later.
    """
    here = [pulled for pulled in pulls if is_same_disk(pulled.folder, folder)]
    to_pull = sum(file.size for pulled in here for file in pulled.missing)
    weights = max((weights_of(pulled) for pulled in pulls), default=0)
    result = weights * sum(map(bits_of, quants))
    free = free_bytes(folder)
    noted = (
        f"`{folder}` has {size_text(free)} free; {size_text(to_pull)} are to be downloaded there,"
        f" and {' + '.join(quants)} needs about {size_text(result // STORED_BITS)} more"
    )
    hint = "free some space, name another disk with -o, or choose a smaller -q"
    if to_pull + result // MOST_STORED_BITS > free:
        raise SpaceError(noted, hint=hint)
    if to_pull + result // STORED_BITS > free:
        report(Warn(f"{noted}: the export may have to stop ({hint})"))


def weights_of(pulled: Pulled) -> int:
    """Bytes of the weight files of a pull, including those that are already here."""
    return sum(file.size for file in pulled.plan.files if file.path.endswith(WEIGHTS))


def bits_of(quant: str) -> int:
    """The bits of a value in a quantization, rounded down: 4 of Q4_K_M, 16 of BF16, 1 of AUTO."""
    found = BITS.search(quant)
    return int(found[0]) if found else 1


def is_same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which may not exist yet, are on the same file system."""
    return existing_part(one).stat().st_dev == existing_part(other).stat().st_dev
