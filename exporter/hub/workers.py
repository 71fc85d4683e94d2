"""The download threads: each fetches a range from an endpoint, then takes the next."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import DownloadError
from exporter.core.events import Note, Progress, Report, Warn
from exporter.hub.endpoint_health import Health, is_slow
from exporter.hub.endpoints import Endpoint
from exporter.hub.publish import Place
from exporter.hub.pull_plan import ANOTHER
from exporter.hub.source import BusyError, CutError, NoRangesError, RefusedError, sniff
from exporter.hub.timeouts import Limits
from exporter.hub.transfer import ChunkWriter, Meter, Transfer, open_part
from exporter.hub.verdict import Attempt, SlowError, ban, judge

if TYPE_CHECKING:
    import httpx2

LOOK_AGAIN_S = 0.2  # interval while another process downloads the same file
# errors that end a request without ending the download
ENDS = (
    RefusedError,
    NoRangesError,
    BusyError,
    SlowError,
    CutError,
)


@dataclass(frozen=True, slots=True)
class Task:
    """The next task of a thread: open a part, or fetch a claim from an endpoint."""

    transfer: Transfer
    attempt: Attempt | None = None


class Workers:
    """Threads that download files until all are published, one fails, or they are stopped."""

    def __init__(
        self,
        transfers: Sequence[Transfer],
        healths: dict[Endpoint, Health],
        place: Place,
        limits: Limits,
        report: Report,
    ) -> None:
        self.pending = deque(transfers)
        self.held: list[Transfer] = []
        self.open: list[Transfer] = []
        self.left = len(transfers)
        self.total = sum(transfer.file.size for transfer in transfers)
        self.done = 0
        """Bytes of published files."""
        self.received = 0
        self.served: Counter[str] = Counter()
        self.healths, self.place = healths, place
        self.limits, self.report, self.clock = limits, report, time.monotonic
        self.changed = threading.Condition()
        self.meters: list[Meter] = []
        self.error: BaseException | None = None
        self.is_stopped = False

    def run(self) -> None:
        """Download everything. Ctrl-C works at once: the threads are daemons."""
        needed = sum(
            min(self.limits.connections, -(-transfer.file.size // self.limits.cell) or 1)
            for transfer in self.pending
        )
        try:
            for _ in range(min(self.limits.in_all, needed)):
                threading.Thread(target=self.work, daemon=True).start()
            while self.left and not self.error:
                with self.changed:
                    self.changed.wait(self.limits.tick_s)
                self.tell()
        finally:
            with self.changed:
                self.is_stopped = True
                for transfer in self.open:
                    if transfer.part and not transfer.users:
                        transfer.part.close()
                self.changed.notify_all()
        if self.error:
            raise self.error

    def tell(self) -> None:
        """Report the progress of all files."""
        with self.changed:
            files = [(t, t.part.nbytes, ", ".join(+t.serving)) for t in self.open if t.part]
            done = self.done
        self.report(
            Progress("total", done + sum(nbytes for _, nbytes, _ in files), self.total, "bytes")
        )
        for transfer, nbytes, hosts in files:
            if transfer.file.size > self.limits.small:
                self.report(
                    Progress(transfer.file.path, nbytes, transfer.file.size, "bytes", hosts)
                )

    @property
    def kept(self) -> int:
        """Bytes that the next run need not fetch."""
        parts = [t.part.nbytes for t in self.open if t.part and t.file.size > self.limits.small]
        return self.done + sum(parts)

    def work(self) -> None:
        """Run tasks until none are left; an error stops all threads."""
        try:
            while (job := self.next_task()) is not None:
                try:
                    if job.attempt is None:
                        self.open_one(job.transfer)
                    else:
                        self.fetch(job.attempt)
                finally:
                    self.leave(job.transfer)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self.changed:
                self.error = self.error or error
                self.is_stopped = True
                self.changed.notify_all()

    def leave(self, transfer: Transfer) -> None:
        """Count a thread out; after a stop the last one closes the part and frees its lock."""
        with self.changed:
            transfer.users -= 1
            if self.is_stopped and not transfer.users and transfer.part:
                transfer.part.close()

    def next_task(self) -> Task | None:
        """Wait for a task; None when none will come."""
        with self.changed:
            while self.left and not self.is_stopped:
                if job := self.find_task():
                    job.transfer.users += 1
                    return job
                self.changed.wait(self.limits.tick_s)
            return None

    def find_task(self) -> Task | None:
        """A range of an open file, else the next file.

        Raises DownloadError when a file has no usable endpoint left.
        """
        for transfer in self.open:
            if transfer.active >= self.limits.connections or transfer.is_checked:
                continue
            usable = transfer.usable(self.healths)
            if not usable:
                raise no_endpoint(transfer, self.healths)
            health = self.pick(transfer, usable)
            if health and (claim := transfer.claim_for(health, usable)):
                whole = transfer.is_whole(usable)
                attempt = Attempt(transfer, claim, health, whole, self.clock())
                attempt.start()
                return Task(transfer, attempt)
        now = self.clock()
        for transfer in self.held:
            if transfer.retry_at <= now:
                self.held.remove(transfer)
                return Task(transfer)
        if self.pending and any(health.is_free for health in self.healths.values()):
            return Task(self.pending.popleft())
        return None

    def pick(self, transfer: Transfer, usable: list[Health]) -> Health | None:
        """The endpoint to ask next for a file; None if it should not be asked now."""
        whole = transfer.is_whole(usable)
        for health in sorted(usable, key=lambda health: health.is_benched):
            if not whole and not transfer.sources[health.endpoint].has_ranges:
                continue
            site = transfer.site(health)
            of_file = transfer.serving[health.endpoint.name]
            if health.is_open and site.has_room(of_file):
                return health
            if health.is_starting(site, of_file):
                return None
        return None

    def open_one(self, transfer: Transfer) -> None:
        """Open a file's part, or try later while another process holds it."""
        part = open_part(transfer.file, self.place.own, self.limits)
        if part is None:
            if not transfer.retry_at:
                self.report(Note(f"another process downloads `{transfer.file.path}`: waiting"))
            with self.changed:
                transfer.retry_at = self.clock() + LOOK_AGAIN_S
                self.held.append(transfer)
            return
        if transfer.retry_at and self.place.has(transfer.file, self.limits):
            part.discard()
            self.finish(transfer)
            return
        with self.changed:
            transfer.adopt(part)
            transfer.is_checked = transfer.is_complete
            self.open.append(transfer)
            self.changed.notify_all()
        if transfer.is_checked:
            self.verify(transfer)

    def fetch(self, attempt: Attempt) -> None:
        """Fetch one claim, or a part of it, and judge the endpoint by the result."""
        news: Note | Warn | None = None
        try:
            ended = self.bring(attempt)
            with self.changed:
                if attempt.nbytes:
                    self.served[attempt.name] += attempt.nbytes
                    self.received += attempt.nbytes
                news = judge(attempt, ended, self.clock())
        finally:
            with self.changed:
                attempt.stop()
                self.changed.notify_all()
        if news:
            self.report(news)
        self.hash_more(attempt.transfer)

    def bring(self, attempt: Attempt) -> Exception | None:
        """Request a claim and write it; returns the error that ended it early, if any.

        Raises SpaceError or OutputError for the local disk.
        """
        import httpx2

        source = attempt.transfer.sources[attempt.health.endpoint]
        start, end = attempt.claim.start, attempt.claim.end
        if attempt.is_whole:
            start, end = 0, attempt.transfer.file.size
        try:
            with source.opened(start, end) as response:
                self.receive(attempt, response, start)
        except (*ENDS, httpx2.HTTPError) as error:
            return error
        return None

    def receive(self, attempt: Attempt, response: httpx2.Response, position: int) -> None:
        """Write the body, which starts at byte `position` of the file, as it arrives.

        Raises CutError if it ends early.
        """
        transfer, claim = attempt.transfer, attempt.claim
        assert transfer.part is not None, "claims are made on open parts"
        meter = Meter(self.clock())
        writer = ChunkWriter(transfer.part, claim, self.clock)
        with self.changed:
            self.meters.append(meter)
        try:
            for chunk in response.iter_raw():
                left = claim.end - claim.at - writer.nbytes
                if self.is_stopped or left <= 0:
                    return
                if position == 0:
                    sniff(chunk, transfer.file.path)
                skip = claim.at + writer.nbytes - position
                position += len(chunk)
                if skip < len(chunk):
                    self.note(attempt, response)
                    writer.add(chunk[skip : skip + left] if skip or left < len(chunk) else chunk)
                    attempt.health.failures = 0
                self.watch(meter, len(chunk), transfer, attempt.health)
        finally:
            writer.flush()
            with self.changed:
                self.meters.remove(meter)
        if claim.at < claim.end:
            raise CutError("broke off")

    def note(self, attempt: Attempt, response: httpx2.Response) -> None:
        """Count arriving bytes, which may prove how many connections the endpoint allows."""
        now = self.clock()
        if attempt.flow and not attempt.site.is_news(attempt.flow, now):
            return
        with self.changed:
            attempt.site.look(attempt.flow or attempt.begin(response, now), now)
            self.changed.notify_all()

    def watch(self, meter: Meter, nbytes: int, transfer: Transfer, health: Health) -> None:
        """Measure the speed. Raises SlowError when another connection would be faster."""
        meter.nbytes += nbytes
        now = self.clock()
        if now - meter.since < self.limits.slow_s:
            return
        meter.rate = meter.nbytes / (now - meter.since)
        meter.since, meter.nbytes = now, 0
        with self.changed:
            health.rate = meter.rate
            rates = [other.rate for other in self.meters if other.rate is not None]
            if is_slow(health, meter.rate, rates, transfer.usable(self.healths)):
                raise SlowError

    def hash_more(self, transfer: Transfer) -> None:
        """Hash the contiguous bytes; the last thread of a complete file verifies it."""
        with self.changed:
            if transfer.is_checked or self.is_stopped or transfer.part is None:
                return
            is_last = transfer.is_complete and not transfer.active
            transfer.is_checked = is_last
        if is_last:
            self.verify(transfer)
        elif transfer.hash_lock.acquire(blocking=False):
            try:
                transfer.part.hash_prefix()
            finally:
                transfer.hash_lock.release()

    def verify(self, transfer: Transfer) -> None:
        """Publish a file with the right hash; discard its bytes otherwise."""
        part = transfer.part
        assert part is not None, "only complete files are verified"
        with transfer.hash_lock:
            is_right = part.is_right()
            if is_right:
                part.publish(self.place.content(transfer.file))
                part.close()
        if is_right:
            self.finish(transfer)
        else:
            self.distrust(transfer)

    def finish(self, transfer: Transfer) -> None:
        """Count a file as published."""
        size = transfer.file.size
        with self.changed:
            if transfer in self.open:
                self.open.remove(transfer)
            self.done += size
            self.left -= 1
            self.changed.notify_all()
        if size > self.limits.small:
            self.report(Progress(transfer.file.path, size, size, "bytes"))

    def distrust(self, transfer: Transfer) -> None:
        """Ban the sole sender of wrong bytes; otherwise fetch again from one endpoint at a time.

        Raises DownloadError after too many wrong hashes.
        """
        sole = transfer.contributors if not transfer.inherited else set()
        if len(sole) == 1:
            with self.changed:
                news = ban(
                    transfer, self.healths[next(iter(sole))], "sends bytes with the wrong hash"
                )
            if news:
                self.report(news)
        else:
            self.report(Warn(f"`{transfer.file.path}` has the wrong hash: fetching it again"))
        with self.changed:
            transfer.start_over()
            if transfer.mismatches > 2 * len(self.healths) + 1:
                raise no_endpoint(transfer, self.healths)


def no_endpoint(transfer: Transfer, healths: dict[Endpoint, Health]) -> DownloadError:
    """The error for a file that no endpoint serves."""
    problems = []
    for endpoint, health in healths.items():
        problem = transfer.banned.get(endpoint) or health.problem
        problems.append(f"{endpoint.name} {problem}")
    is_private = any("gated" in reason for reason in transfer.banned.values())
    return DownloadError(
        f"no endpoint gives `{transfer.file.path}`: {'; '.join(problems)}",
        hint="ask for access on its page, then log in: hf auth login"
        if is_private
        else f"received bytes are kept; {ANOTHER}",
    )
