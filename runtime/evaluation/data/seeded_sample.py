"""Samples of rows that depend on the seed alone, not on the platform or Python's version."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from hashlib import blake2b


def seeded_sample(rows: Sequence[int], count: int, seed: int, purpose: str) -> list[int]:
    """`count` of the rows, in their order; a larger sample holds a smaller one of the same seed.

    The rows whose numbers have the smallest hashes are taken: a row's hash does not depend on the
    other rows.
    """
    if count >= len(rows):
        return list(rows)

    def lot(row: int) -> bytes:
        return blake2b(f"{purpose}:{seed}:{row}".encode(), digest_size=8).digest()

    return sorted(heapq.nsmallest(count, rows, key=lot))
