"""How the endpoints of a pull do: which answer, how fast, and how many connections they allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from exporter.hub.access_token import Origin, address, origin
from exporter.hub.endpoints import Endpoint
from exporter.hub.probe_history import Kind, Memory
from exporter.hub.timeouts import Limits

NOWHERE: Origin = ("", "", 0)


class Allowance:
    """How many connections at once an endpoint serves: more until it refuses one, then fewer.

    Starts with one, doubles while all of them are served, and after a refusal tries one more
    now and then, ever more rarely. Its holder locks.
    """

    def __init__(self, ceiling: int, limits: Limits, clock: Callable[[], float]) -> None:
        """Expect `ceiling` connections to be allowed."""
        self.ceiling, self.limits, self.clock = ceiling, limits, clock
        self.most = ceiling
        """Connections it is believed to allow."""
        self.granted = 0
        """Connections at once that brought what was asked for."""
        self.proven = 0
        """Connections at once over which bytes came for sure, not one after the other."""
        self.found: int | None = None
        """`most`, where a refusal of one more has shown it."""
        self.lowered_at = -1.0
        self.is_over = False
        """Whether the last refusal was of more than were ever served."""
        self.more_at = 0.0
        """One more than `most` is tried then."""
        self.more_wait = limits.more_s

    @property
    def room(self) -> int:
        """Connections that may be open now."""
        if not self.granted:
            return 1
        more = self.most < self.ceiling and self.clock() >= self.more_at
        return min(self.most + more, 2 * self.granted)

    def remember(self, most: int | None) -> None:
        """Begin with what an earlier pull found, if it did."""
        if most and most < self.ceiling:
            self.most = self.found = most
            self.more_at = self.clock() + self.more_wait

    def served(self, level: int, *, is_sure: bool = False) -> None:
        """Bytes came while `level` connections were open, or were all bringing some."""
        self.granted = max(self.granted, level)
        if is_sure:
            self.proven = max(self.proven, level)
        if level > self.most:
            self.most = level
            self.found = level if level < self.ceiling else None
            self.more_wait = self.limits.more_s
            self.more_at = self.clock() + self.more_wait

    def refused(self, level: int, *, began: float, wait_s: float = 0.0) -> bool:
        """Lower it, since a request begun at `began` as the `level`-th at once was refused.

        Returns whether that were more connections than are known to be served: then it is their
        number that was refused. Else it may be anything, and the number is halved, once a moment.
        """
        is_same = began < self.lowered_at  # the moment of a refusal that was drawn on
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
        """Try one more later than next time, and not within `wait_s` seconds."""
        now = self.lowered_at = self.clock()
        if now >= self.more_at:
            self.more_at = now + max(wait_s, self.more_wait)
            self.more_wait = min(4 * self.more_wait, self.limits.more_max_s)


@dataclass(slots=True, eq=False)
class Flow:
    """A connection over which bytes come."""

    path: str
    """Of the file."""
    seen: float
    """When some of them were last looked at."""


class Site:
    """A host that an endpoint's bytes come from: its own, or one that it redirects to."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        """Know nothing of what it allows."""
        self.limits = limits
        self.active = 0
        """Connections that are open."""
        self.flows: list[Flow] = []
        self.newest = 0.0
        """When the newest of them began."""
        self.in_all = Allowance(limits.in_all, limits, clock)
        self.per_file = Allowance(limits.connections, limits, clock)
        self.asked_at: float | None = None
        """When it got its first request."""

    @property
    def allowances(self) -> dict[Kind, Allowance]:
        return {"in all": self.in_all, "of a file": self.per_file}

    def flow(self, path: str, now: float) -> Flow:
        """Bytes of a file begin to come over one more connection."""
        self.newest = now
        self.flows.append(Flow(path, now))
        return self.flows[-1]

    def is_news(self, flow: Flow, now: float) -> bool:
        """Whether bytes that come now tell how many connections are served at once."""
        return flow.seen < self.newest + self.limits.proof_s <= now

    def look(self, flow: Flow, now: float) -> None:
        """Count the connections that have brought bytes since the newest one began."""
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
        """What does not allow one connection more, for a file that has `of_file`."""
        counts = ((self.in_all, self.active), (self.per_file, of_file))
        return [which for which, count in counts if count >= which.room]

    def has_room(self, of_file: int) -> bool:
        return not self.full(of_file)


class Health:
    """How one endpoint does in this pull. Its holder locks."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        clock: Callable[[], float],
        memory: Memory | None = None,
    ) -> None:
        """Know nothing bad yet but what `memory` says of its hosts."""
        self.endpoint, self.limits, self.clock = endpoint, limits, clock
        self.memory = memory or Memory()
        self.active = 0
        """Connections that are open."""
        self.sites: dict[Origin, Site] = {}
        self.home = origin(endpoint.url)
        self.store = NOWHERE
        """Where it keeps large files, once it has been asked for one."""
        self.asked_at: float | None = None
        """When it got its first request."""
        self.has_answered = False
        """Whether it answered anything; before, it has one connection."""
        self.failures = 0
        """In a row, without a byte between."""
        self.waits = 0
        """How often it asked to wait, in a row, without a byte between."""
        self.failed_at = -1.0
        self.closed_until = 0.0
        """It is not asked before."""
        self.benched_until = 0.0
        """Others go first until then."""
        self.rate: float | None = None
        """Bytes a second of one connection, as last measured."""
        self.problem = ""

    def site(self, where: Origin) -> Site:
        if where not in self.sites:
            self.sites[where] = site = Site(self.limits, self.clock)
            for kind, which in site.allowances.items():
                which.remember(self.memory.most(address(where), kind))
        return self.sites[where]

    def learn(self) -> None:
        """Have the next pull know what its hosts allow."""
        for where, site in self.sites.items():
            for kind, which in site.allowances.items():
                if which.granted:
                    self.memory.learn_most(address(where), kind, which.found)

    @property
    def is_dead(self) -> bool:
        return self.failures >= self.limits.tries or self.waits >= self.limits.waits

    @property
    def is_open(self) -> bool:
        """Whether it may be asked at all: one connection finds out, the others wait."""
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
        """Whether one connection more may be opened, now or soon."""
        return self.is_free or self.is_starting(self.site(self.store), 0)

    def is_starting(self, site: Site, of_file: int) -> bool:
        """Whether it had no time yet to show how many connections it allows at one of its sites."""
        asked_at = site.asked_at or self.asked_at or self.clock()
        is_young = self.clock() - asked_at < self.limits.start_s
        grows = all(which.room < which.most for which in site.full(of_file))
        return self.is_up and not self.failures and is_young and (grows or not self.has_answered)

    @property
    def is_benched(self) -> bool:
        return self.clock() < self.benched_until

    def doubt(self) -> None:
        """It did not work in an earlier pull: others first, and then one connection."""
        self.failures = 1
        self.benched_until = self.clock() + self.limits.bench_s

    def sent(self, nbytes: int, seconds: float) -> None:
        """Bytes arrived: whatever was wrong is over."""
        self.failures = self.waits = 0
        if seconds > 0 and nbytes >= 64 << 10:
            self.rate = nbytes / seconds

    def failed(self, problem: str, *, began: float, got_bytes: bool, growth: int = 2) -> None:
        """Count a failure; those of requests begun before the last one are the same failure.

        Each waits `growth` times as long as the one before.
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

    def asked_to_wait(self, seconds: float, problem: str, *, began: float) -> None:
        """Leave it alone for so long; requests begun before it last asked count as one."""
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
    """Whether a connection should be given up for one to another endpoint, or a fresh one.

    Either it does less than a tenth of what the median connection does, or it is slow and
    another endpoint is free that is not known to be as slow.
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
    memory: Memory | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Endpoint, Health]:
    return {endpoint: Health(endpoint, limits, clock, memory) for endpoint in endpoints}
