"""One file in transfer: its part, the endpoints that may serve it, and the claimed ranges."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.hub.access_token import origin
from exporter.hub.endpoint_health import Health, Site
from exporter.hub.endpoints import Endpoint
from exporter.hub.partial_file import DiskPart, Part, SmallPart
from exporter.hub.pull_plan import PlannedFile
from exporter.hub.source import Source
from exporter.hub.timeouts import Limits

GATHER = 256 << 10  # bytes written at once; kill -9 loses at most these per connection
GATHER_S = 0.02  # between two writes of a slow connection
CELLS_MAX = 4096  # journal entries of one file; larger files have larger cells


@dataclass(slots=True)
class Claim:
    """A range that one connection fetches."""

    cells: range
    start: int
    end: int
    at: int
    """Position of the next byte; those before it are written."""


@dataclass(slots=True)
class ChunkWriter:
    """Gathers small chunks into fewer writes to disk."""

    part: Part
    claim: Claim
    clock: Callable[[], float]
    chunks: list[bytes] = field(default_factory=list)
    nbytes: int = 0
    flushed_at: float = 0.0

    def add(self, data: bytes) -> None:
        self.chunks.append(data)
        self.nbytes += len(data)
        if self.nbytes >= GATHER or self.clock() - self.flushed_at > GATHER_S:
            self.flush()

    def flush(self) -> None:
        """Write the gathered chunks and advance the claim."""
        if self.nbytes:
            self.part.write(self.claim.at, self.chunks, self.nbytes)
            self.claim.at += self.nbytes
            self.chunks, self.nbytes = [], 0
        self.flushed_at = self.clock()


@dataclass(slots=True)
class Meter:
    """Speed of one connection, measured window by window."""

    since: float
    nbytes: int = 0
    rate: float | None = None


@dataclass(slots=True)
class Transfer:
    """One file in transfer. The workers' lock guards all but the part's bytes."""

    file: PlannedFile
    sources: dict[Endpoint, Source]
    limits: Limits
    part: Part | None = None
    banned: dict[Endpoint, str] = field(default_factory=dict)
    """Endpoints that cannot serve this file, with the reason."""
    contributors: set[Endpoint] = field(default_factory=set)
    serving: Counter[str] = field(default_factory=Counter)
    active: int = 0
    """Number of claims being fetched."""
    users: int = 0
    """Number of threads that use the part."""
    claimed: bytearray = field(default_factory=bytearray)
    low: int = 0
    """Index of the first cell that may be incomplete."""
    mismatches: int = 0
    is_checked: bool = False
    """Whether a thread has verified it or is doing so."""
    hash_lock: threading.Lock = field(default_factory=threading.Lock)
    retry_at: float = 0.0
    """Time to try again, while another process holds the part."""

    def adopt(self, part: Part) -> None:
        self.part = part
        self.claimed = bytearray(len(part.done))

    @property
    def is_complete(self) -> bool:
        return self.part is not None and self.part.nbytes == self.file.size

    @property
    def inherited(self) -> int:
        """Bytes that an earlier process downloaded, from an unknown endpoint."""
        return self.part.inherited if isinstance(self.part, DiskPart) else 0

    def usable(self, healths: dict[Endpoint, Health]) -> list[Health]:
        """Endpoints that may serve this file, in order; after a wrong hash only one at a time."""
        alone = self.mismatches and self.contributors
        return [
            health
            for endpoint, health in healths.items()
            if endpoint not in self.banned
            and not health.is_dead
            and (not alone or endpoint in self.contributors or all_dead(healths, alone))
        ]

    def is_whole(self, usable: list[Health]) -> bool:
        """Whether every endpoint sends the file only as a whole."""
        return not any(self.sources[health.endpoint].has_ranges for health in usable)

    def site(self, health: Health) -> Site:
        """The host that an endpoint will probably answer from."""
        source = self.sources[health.endpoint]
        if source.location:
            return health.site(origin(source.location))
        return health.site(health.store if source.is_large else health.home)

    def claim_for(self, health: Health, usable: list[Health]) -> Claim | None:
        """The next range to fetch from an endpoint; None when all are written or claimed."""
        if self.is_whole(usable):
            return self.claim(width=1, most=self.file.size, whole=True)
        allowed = sum(self.site(other).width for other in usable)
        width = min(allowed, self.limits.connections)
        most = self.limits.claim_max
        if width == 1:  # each request costs a pause, and endpoints may count them
            most = max(most, int(self.limits.alone_s * (health.rate or 0)))
        return self.claim(width=width, most=most)

    def claim(self, *, width: int, most: int, whole: bool = False) -> Claim | None:
        """Claim a range of at most `most` bytes that leaves work for `width` connections."""
        part = self.part
        assert part is not None, "claims are made on open parts"
        if self.is_checked or (whole and self.active):
            return None
        cells = len(part.done)
        while self.low < cells and part.is_full(self.low):
            self.low += 1
        open_cells = [
            cell
            for cell in range(self.low, cells)
            if not self.claimed[cell] and not part.is_full(cell)
        ]
        if not open_cells:
            return None
        first = open_cells[0]
        share = len(open_cells) if width == 1 else len(open_cells) // (2 * width)
        count = cells if whole else max(1, min(share, most // part.cell))
        last = first + 1
        while last < cells and last - first < count:
            if not whole and (self.claimed[last] or part.done[last]):
                break
            last += 1
        self.claimed[first:last] = b"\1" * (last - first)
        self.active += 1
        start = first * part.cell + part.done[first]
        end = min(last * part.cell, self.file.size)
        return Claim(range(first, last), start, end, start)

    def release(self, claim: Claim) -> None:
        for cell in claim.cells:
            self.claimed[cell] = 0
        self.active -= 1

    def start_over(self) -> None:
        """Discard the bytes after a wrong hash."""
        assert self.part is not None, "there was something to hash"
        self.part.clear()
        if isinstance(self.part, DiskPart):
            self.part.inherited = 0
        self.mismatches += 1
        self.contributors.clear()
        self.is_checked = False
        self.low = 0


def all_dead(healths: dict[Endpoint, Health], endpoints: set[Endpoint]) -> bool:
    return all(healths[endpoint].is_dead for endpoint in endpoints)


def open_part(file: PlannedFile, folder: Path, limits: Limits) -> Part | None:
    """The file's part with the bytes it has; None while another process holds it."""
    if file.size <= limits.small:
        return SmallPart(file, folder)
    cells = replace(limits, cell=max(limits.cell, round_up(file.size // CELLS_MAX, limits.cell)))
    return DiskPart.open(file, folder, cells)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
