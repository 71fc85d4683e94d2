"""The times and sizes a download goes by; tests pass shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a download is, and how wide."""

    connections: int = 4
    """Ranges of one file at a time; over all files twice as many."""
    connect_s: float = 10.0
    probe_s: float = 3.0
    """For an answer that can be done without, or from an endpoint that gave none last time."""
    stall_s: float = 15.0
    """Without a byte for so long, a connection is given up."""
    slow_s: float = 10.0
    """Over so long a connection's speed is judged."""
    slow_rate: float = 100_000.0
    """Bytes a second below which another endpoint is tried, if one is free."""
    bench_s: float = 30.0
    """For so long other endpoints go before one that failed."""
    backoff_s: float = 0.5
    """First wait for an endpoint that failed without sending a byte; it doubles."""
    backoff_max_s: float = 30.0
    retry_after_max_s: float = 300.0
    tries: int = 8
    """Failures in a row without one new byte after which an endpoint is dead."""
    waits: int = 20
    """Times in a row that an endpoint may ask to wait, without one new byte, before it is dead."""
    start_s: float = 1.0
    """For so long other endpoints wait for one that goes before them to show what it allows."""
    proof_s: float = 0.05
    """Two connections that both bring bytes so long after the second began are served at once."""
    more_s: float = 20.0
    """After a refusal, until one connection more is tried; four times as long after the next."""
    more_max_s: float = 960.0
    cell: int = 1 << 18
    """Bytes of a file that one journal entry stands for."""
    claim_max: int = 32 << 20
    """Longest range of one request, where several connections are allowed."""
    alone_s: float = 30.0
    """Where one connection is allowed, a request may be for what comes in so long."""
    small: int = 1 << 20
    """Files up to this size are kept in memory until they are verified."""
    margin: int = 64 << 20
    """Bytes of disk to leave free."""
    sync_every: int = 64 << 20
    """Bytes between two syncs of a part, the most a power cut can take."""
    tick_s: float = 0.1
    """Between two reports of progress."""

    @property
    def in_all(self) -> int:
        return 2 * self.connections
