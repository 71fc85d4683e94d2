"""Time and size limits of a download; tests use shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a download waits, and how many connections it opens."""

    connections: int = 4
    """Simultaneous ranges of one file; twice as many over all files."""
    connect_s: float = 10.0
    probe_s: float = 3.0
    """Timeout of optional requests, and of endpoints that did not answer last time."""
    stall_s: float = 15.0
    """Time without a byte after which a connection is dropped."""
    slow_s: float = 10.0
    """Time over which a connection's speed is measured."""
    slow_rate: float = 100_000.0
    """Bytes per second below which another free endpoint is tried."""
    bench_s: float = 30.0
    """Time for which other endpoints go before one that failed."""
    backoff_s: float = 0.5
    """First wait after a failure without a byte; it doubles each time."""
    backoff_max_s: float = 30.0
    retry_after_max_s: float = 300.0
    tries: int = 8
    """Failures in a row, without a new byte, after which an endpoint is dead."""
    waits: int = 20
    """Answers in a row that ask to wait, without a new byte, after which an endpoint is dead."""
    start_s: float = 1.0
    """Time for which other endpoints wait while a preferred one shows what it allows."""
    proof_s: float = 0.05
    """Time after which two connections that both deliver count as served at once."""
    more_s: float = 20.0
    """Wait after a refusal before one more connection is tried; it quadruples each time."""
    more_max_s: float = 960.0
    cell: int = 1 << 18
    """Bytes of a file that one journal entry covers."""
    claim_max: int = 32 << 20
    """Bytes of the longest range of one request, if several connections are allowed."""
    alone_s: float = 30.0
    """Length of a request in seconds of transfer, if one connection is allowed."""
    small: int = 1 << 20
    """Bytes up to which a file is kept in memory until it is verified."""
    margin: int = 64 << 20
    """Bytes of disk that stay free."""
    sync_every: int = 64 << 20
    """Bytes between two syncs of a part, the most a power cut can lose."""
    tick_s: float = 0.1
    """Time between two progress reports."""

    @property
    def in_all(self) -> int:
        return 2 * self.connections
