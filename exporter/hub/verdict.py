"""Judges an endpoint by how a request ended: wrong, busy, slow, or too many connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.core.events import Note, Warn
from exporter.hub.access_token import Origin, origin
from exporter.hub.endpoint_health import Flow, Health, Site
from exporter.hub.source import BusyError, CutError, DeniedError, NoRangesError, RefusedError, words
from exporter.hub.transfer import Claim, Transfer

if TYPE_CHECKING:
    import httpx2


class SlowError(Exception):
    """Another connection would be faster."""


@dataclass(slots=True)
class Attempt:
    """One request for a claim of a file."""

    transfer: Transfer
    claim: Claim
    health: Health
    is_whole: bool
    """Whether the file can only be read as a whole."""
    began: float
    site: Site = field(init=False)
    """The host that probably answers."""
    level: int = 1
    """Open connections to the site, this one included."""
    of_file: int = 1
    """The endpoint's connections for this file, this one included."""
    flow: Flow | None = None
    """The flow of bytes, after the first one."""

    @property
    def name(self) -> str:
        return self.health.endpoint.name

    @property
    def nbytes(self) -> int:
        return self.claim.at - self.claim.start

    @property
    def at_once(self) -> int:
        """Connections that the site had to serve, including this one, which delivers nothing."""
        return max(self.level, self.site.active)

    def start(self) -> None:
        """Count the connection. The caller holds the workers' lock, here and below."""
        self.site = self.transfer.site(self.health)
        self.site.first_request_at = self.site.first_request_at or self.began
        self.health.first_request_at = self.health.first_request_at or self.began
        self.health.active += 1
        self.site.active += 1
        self.transfer.serving[self.name] += 1
        self.level, self.of_file = self.site.active, self.transfer.serving[self.name]

    def stop(self) -> None:
        self.transfer.release(self.claim)
        self.transfer.serving[self.name] -= 1
        self.site.active -= 1
        if self.flow:
            self.site.flows.remove(self.flow)
        self.health.active -= 1

    def answered(self, where: Origin) -> None:
        """Record which host answers; a redirecting host has served its connection."""
        self.health.has_answered = True
        if self.transfer.sources[self.health.endpoint].is_large:
            self.health.store = where
        site = self.health.site(where)
        if site is not self.site:
            self.site.in_all.served(min(self.level, self.site.active))
            self.site.active -= 1
            site.active += 1
            self.site, self.level = site, site.active

    def begin(self, response: httpx2.Response, now: float) -> Flow:
        """Register the first bytes."""
        self.health.failures = self.health.waits = 0
        self.answered(origin(str(response.url)))
        self.transfer.contributors.add(self.health.endpoint)
        self.flow = self.site.flow(self.transfer.file.path, now)
        return self.flow

    def complete(self) -> None:
        """Count a complete claim: the current connections are probably served at once."""
        self.site.in_all.served(min(self.level, self.site.active))
        self.site.per_file.served(min(self.of_file, self.transfer.serving[self.name]))


def judge(attempt: Attempt, error: Exception | None, now: float) -> Note | Warn | None:
    """Update the endpoint's state after a request; returns news for the user."""
    health = attempt.health
    was_benched = health.is_benched
    if attempt.nbytes:
        health.sent(attempt.nbytes, now - attempt.began)
    match meant(attempt, error):
        case None:
            attempt.complete()
            return None
        case NoRangesError():
            attempt.transfer.sources[health.endpoint].has_ranges = False
            return None
        case RefusedError() as refusal:
            return ban(attempt.transfer, health, str(refusal))
        case BusyError() as busy:
            problem, limit = refuse(attempt, busy)
        case SlowError():
            problem, limit = "is slow", None
            health.too_slow()
        case failure:
            problem, limit = broke(attempt, failure)
    if limit:
        return Note(
            f"{attempt.name} {problem} where one more connection is opened: continuing with {limit}"
        )
    if len(attempt.transfer.sources) == 1:
        return Note(f"{attempt.name} {problem}") if health.waits else None
    return None if was_benched else Note(f"{attempt.name} {problem}: others go first for a while")


def meant(attempt: Attempt, error: Exception | None) -> Exception | None:
    """Interpret an error: a denial from a site that serves others means it is busy."""
    if isinstance(error, DeniedError):
        attempt.answered(error.busy.origin)
        if attempt.at_once > 1 or attempt.site.in_all.granted:
            return error.busy
    if isinstance(error, BusyError):
        attempt.answered(error.origin)
    return error


def refuse(attempt: Attempt, error: BusyError) -> tuple[str, int | None]:
    """Open fewer connections; pause the endpoint if only one was open, or if fewer did not help.

    Returns the problem, and the file's new limit of connections if it changed.
    """
    health, problem = attempt.health, str(error)
    is_over, limit = lower(attempt, error.wait_s)
    if is_over or (attempt.site.flows and not error.wait_s):
        return problem, limit  # the served connections continue
    if not error.wait_s:
        health.failed(problem, began=attempt.began, got_bytes=False, growth=4)
        return problem, None
    wait_s = min(error.wait_s, health.limits.retry_after_max_s)
    problem += f" and asks to wait {wait_s:.0f} s"
    health.pause_for(wait_s, problem, began=attempt.began)
    return problem, None


def lower(attempt: Attempt, wait_s: float = 0.0) -> tuple[bool, int | None]:
    """Lower the expected number of connections after a request without an answer.

    Returns whether there were more connections than are known to be served at once, and the file's
    new limit of connections if it changed.
    """
    site, began, level = attempt.site, attempt.began, attempt.at_once
    in_all, per_file = site.in_all, site.per_file
    before = site.width
    if level == 1:
        return False, None
    is_alone = level <= attempt.of_file  # all connections belong to this file
    if attempt.of_file > per_file.proven and (is_alone or level <= in_all.proven):
        is_over = per_file.refused(attempt.of_file, began=began, wait_s=wait_s)
        if in_all.found:
            in_all.postpone(wait_s)  # it may be unchanged: testing that costs one request
    else:
        is_over = in_all.refused(level, began=began, wait_s=wait_s)
    return is_over, site.width if is_over and site.width < before else None


def broke(attempt: Attempt, error: Exception) -> tuple[str, int | None]:
    """Count a failure; no byte while the site serves others counts as a refusal.

    Returns the same pair as `refuse`.
    """
    problem = str(error) if isinstance(error, CutError) else words(error)
    site = attempt.site
    if not attempt.flow and (site.flows or 1 < attempt.at_once > site.in_all.proven):
        _, limit = lower(attempt)
        return problem, limit
    attempt.health.failed(problem, began=attempt.began, got_bytes=attempt.flow is not None)
    return problem, None


def ban(transfer: Transfer, health: Health, reason: str) -> Warn | None:
    """Exclude an endpoint for one file."""
    is_news = health.endpoint not in transfer.banned
    transfer.banned[health.endpoint] = reason
    return Warn(f"{health.endpoint.name} {reason}: `{transfer.file.path}`") if is_news else None
