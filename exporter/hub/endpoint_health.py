"""State of a pull's endpoints: which answer, how fast, how many connections they allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from exporter.hub.access_token import Origin, address, origin
from exporter.hub.endpoints import Endpoint
from exporter.hub.probe_history import Kind, ProbeHistory
from exporter.hub.timeouts import Limits

NOWHERE: Origin = ("", "", 0)


class Allowance:
    """Estimates how many simultaneous connections an endpoint serves.

    Starts with one and doubles while all are served; after a refusal it lowers the estimate, then
    tries one more at growing intervals. The caller holds the lock.
    """

    def __init__(self, ceiling: int, limits: Limits, clock: Callable[[], float]) -> None:
        """Allowance that expects `ceiling` connections, and at first opens a single one."""
        self.ceiling, self.limits, self.clock = ceiling, limits, clock
        self.most = ceiling
        """Connections that it probably allows."""
        self.granted = 0
        """Most simultaneous connections that delivered what was requested."""
        self.proven = 0
        """Most connections that certainly delivered bytes at the same time."""
        self.found: int | None = None
        """`most`, if the refusal of one more has confirmed it."""
        self.lowered_at = -1.0
        self.is_over = False
        """Whether the last refusal concerned more connections than were ever served."""
        self.more_at = 0.0
        """Time from which one more than `most` is tried."""
        self.more_wait = limits.more_s

    @property
    def room(self) -> int:
        """Connections that may be open now."""
        if not self.granted:
            return 1
        more = self.most < self.ceiling and self.clock() >= self.more_at
        return min(self.most + more, 2 * self.granted)

    def remember(self, most: int | None) -> None:
        """Start from an earlier pull's result, if there is one."""
        if most and most < self.ceiling:
            self.most = self.found = most
            self.more_at = self.clock() + self.more_wait

    def served(self, level: int, *, is_sure: bool = False) -> None:
        """Count a success with `level` open connections; `is_sure`: all of them deliver bytes."""
        self.granted = max(self.granted, level)
        if is_sure:
            self.proven = max(self.proven, level)
        if level > self.most:
            self.most = level
            self.found = level if level < self.ceiling else None
            self.more_wait = self.limits.more_s
            self.more_at = self.clock() + self.more_wait

    def refused(self, level: int, *, began: float, wait_s: float = 0.0) -> bool:
        """Lower the estimate after a refusal of the `level`-th simultaneous connection.

        began: start of the refused request. Returns whether `level` exceeds the number known to be
        served: then the endpoint refused the number. Otherwise the cause is unknown, and the
        estimate is halved, once for all requests that were open at that time.
        """
        is_same = began < self.lowered_at  # as a refusal that was counted before
        if is_same and level > self.most:
            return self.is_over
        self.is_over = is_over = level > self.proven
        if is_over:
            self.most = self.found = min(self.most, max(1, level - 1))
        elif not is_same:
            self.most = max(1, self.most // 2)
        self.granted = min(self.granted, self.most)
        self.proven = min(self.proven, self.most)
        self.postpone(wait_s)
        return is_over

    def postpone(self, wait_s: float = 0.0) -> None:
        """Delay the next attempt at one more connection, by `wait_s` seconds or longer."""
        now = self.lowered_at = self.clock()
        if now >= self.more_at:
            self.more_at = now + max(wait_s, self.more_wait)
            self.more_wait = min(4 * self.more_wait, self.limits.more_max_s)


@dataclass(slots=True, eq=False)
class Flow:
    """A connection that delivers bytes."""

    path: str
    """The file's path in the repo."""
    seen: float
    """Time at which its bytes were last counted."""


class Site:
    """A host that delivers an endpoint's bytes: its own, or one that it redirects to."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.active = 0
        """Open connections to the site."""
        self.flows: list[Flow] = []
        self.newest = 0.0
        """Start time of the newest flow."""
        self.in_all = Allowance(limits.in_all, limits, clock)
        self.per_file = Allowance(limits.connections, limits, clock)
        self.first_request_at: float | None = None
        """Time of its first request."""

    @property
    def allowances(self) -> dict[Kind, Allowance]:
        return {"in all": self.in_all, "of a file": self.per_file}

    def flow(self, path: str, now: float) -> Flow:
        """Register a connection that starts to deliver bytes of a file."""
        self.newest = now
        self.flows.append(Flow(path, now))
        return self.flows[-1]

    def is_news(self, flow: Flow, now: float) -> bool:
        """Whether bytes that arrive now prove how many connections are served at once."""
        return flow.seen < self.newest + self.limits.proof_s <= now

    def look(self, flow: Flow, now: float) -> None:
        """Count the connections that delivered bytes since the newest one began."""
        flow.seen = now
        since = self.newest + self.limits.proof_s
        paths = [other.path for other in self.flows if other.seen >= since]
        self.in_all.served(len(paths), is_sure=True)
        self.per_file.served(paths.count(flow.path), is_sure=True)

    @property
    def width(self) -> int:
        """Connections that one file may have."""
        return min(self.per_file.most, self.in_all.most)

    def full(self, of_file: int) -> list[Allowance]:
        """The allowances that refuse one more connection for a file with `of_file` open."""
        counts = ((self.in_all, self.active), (self.per_file, of_file))
        return [which for which, count in counts if count >= which.room]

    def has_room(self, of_file: int) -> bool:
        return not self.full(of_file)


class Health:
    """State of one endpoint in this pull. The caller holds the lock."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        clock: Callable[[], float],
        memory: ProbeHistory | None = None,
    ) -> None:
        """State before the first request; `memory` holds the results of earlier pulls."""
        self.endpoint, self.limits, self.clock = endpoint, limits, clock
        self.memory = memory or ProbeHistory()
        self.active = 0
        """Open connections to the endpoint."""
        self.sites: dict[Origin, Site] = {}
        self.home = origin(endpoint.url)
        self.store = NOWHERE
        """Host of its large files, known after the first request for one."""
        self.first_request_at: float | None = None
        """Time of its first request."""
        self.has_answered = False
        """Whether it has answered anything; until then it gets one connection."""
        self.failures = 0
        """Failures in a row without a byte in between."""
        self.waits = 0
        """Answers in a row that ask to wait, without a byte in between."""
        self.failed_at = -1.0
        self.closed_until = 0.0
        """Time before which it gets no request."""
        self.benched_until = 0.0
        """Time until which other endpoints go first."""
        self.rate: float | None = None
        """Bytes per second of one connection, as last measured."""
        self.problem = ""

    def site(self, where: Origin) -> Site:
        if where not in self.sites:
            self.sites[where] = site = Site(self.limits, self.clock)
            for kind, which in site.allowances.items():
                which.remember(self.memory.most(address(where), kind))
        return self.sites[where]

    def learn(self) -> None:
        """Save for the next pull how many connections its hosts allow."""
        for where, site in self.sites.items():
            for kind, which in site.allowances.items():
                if which.granted:
                    self.memory.learn_most(address(where), kind, which.found)

    @property
    def is_dead(self) -> bool:
        return self.failures >= self.limits.tries or self.waits >= self.limits.waits

    @property
    def is_open(self) -> bool:
        """Whether it may get a request: while it is untested, one connection at a time."""
        most = self.limits.in_all if self.has_answered and not self.failures else 1
        return self.is_up and self.active < most

    @property
    def is_up(self) -> bool:
        return not self.is_dead and self.clock() >= self.closed_until

    @property
    def is_free(self) -> bool:
        return self.is_open and self.site(self.store).has_room(0)

    @property
    def is_promising(self) -> bool:
        """Whether one more connection may be opened, now or soon."""
        return self.is_free or self.is_starting(self.site(self.store), 0)

    def is_starting(self, site: Site, of_file: int) -> bool:
        """Whether it is too new to have shown how many connections one of its sites allows."""
        first_request_at = site.first_request_at or self.first_request_at or self.clock()
        is_young = self.clock() - first_request_at < self.limits.start_s
        grows = all(which.room < which.most for which in site.full(of_file))
        return self.is_up and not self.failures and is_young and (grows or not self.has_answered)

    @property
    def is_benched(self) -> bool:
        return self.clock() < self.benched_until

    def doubt(self) -> None:
        """Put an endpoint that failed in an earlier pull behind the others, with one connection."""
        self.failures = 1
        self.benched_until = self.clock() + self.limits.bench_s

    def sent(self, nbytes: int, seconds: float) -> None:
        """Count delivered bytes; earlier failures no longer matter."""
        self.failures = self.waits = 0
        if seconds > 0 and nbytes >= 64 << 10:
            self.rate = nbytes / seconds

    def failed(self, problem: str, *, began: float, got_bytes: bool, growth: int = 2) -> None:
        """Count a failure; requests that began before the last failure count as part of it.

        Each wait is `growth` times the one before.
        """
        now, limits = self.clock(), self.limits
        self.problem = problem
        self.benched_until = max(self.benched_until, now + limits.bench_s)
        if got_bytes or began < self.failed_at:
            return
        self.failures += 1
        self.failed_at = now
        wait = min(limits.backoff_s * growth ** (self.failures - 1), limits.backoff_max_s)
        self.closed_until = max(self.closed_until, now + wait)

    def pause_for(self, seconds: float, problem: str, *, began: float) -> None:
        """Pause the endpoint for `seconds` or longer.

        Requests that began before its last failure are not counted again.
        """
        now, limits = self.clock(), self.limits
        self.problem = problem
        if began >= self.failed_at:
            self.waits += 1
            self.failed_at = now
        patience = limits.backoff_s * 2 ** (self.waits - limits.tries // 2)
        seconds = max(seconds, min(patience, limits.backoff_max_s))
        self.closed_until = max(self.closed_until, now + seconds)
        self.benched_until = max(self.benched_until, now + seconds)

    def too_slow(self) -> None:
        self.benched_until = max(self.benched_until, self.clock() + self.limits.bench_s)


def is_slow(health: Health, rate: float, rates: Sequence[float], others: Iterable[Health]) -> bool:
    """Whether to replace a connection by one to another endpoint, or by a new one.

    True if it delivers less than a tenth of the median connection, or less than `slow_rate` while
    another endpoint is free and not known to be as slow.
    """
    if len(rates) >= 3 and rate < sorted(rates)[len(rates) // 2] / 10:  # noqa: PLR2004
        return True
    return rate < health.limits.slow_rate and any(
        other.is_promising
        and not other.is_benched
        and (other.rate is None or other.rate > 3 * rate)
        for other in others
        if other is not health
    )


def healths(
    endpoints: Sequence[Endpoint],
    limits: Limits,
    memory: ProbeHistory | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Endpoint, Health]:
    return {endpoint: Health(endpoint, limits, clock, memory) for endpoint in endpoints}
