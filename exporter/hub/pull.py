"""Downloads a repo's files: plan, check the space, fetch, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.core.errors import DownloadError
from exporter.core.events import Note, Report, Step, Warn, silent
from exporter.core.paths import size_text
from exporter.hub.access_token import TokenRule
from exporter.hub.cached_snapshot import cached_plan, gap, is_here
from exporter.hub.endpoint_health import healths
from exporter.hub.endpoints import Endpoint
from exporter.hub.lockfile import NAME, check_sha256, with_sha256, write_plan
from exporter.hub.probe_history import LACKS, ProbeHistory
from exporter.hub.publish import Place, check_place, check_space, link_snapshot, prepare
from exporter.hub.pull_plan import FileFilter, Plan, PlannedFile, UnansweredError, choose, make_plan
from exporter.hub.repo_refs import Ref
from exporter.hub.source import Source, Wire, modelscope_files
from exporter.hub.timeouts import Limits
from exporter.hub.transfer import GATHER, Transfer
from exporter.hub.workers import Workers

ONLINE = "leave out --offline, and unset HF_HUB_OFFLINE"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A download: which files, from which endpoints, to which place."""

    ref: Ref
    endpoints: tuple[Endpoint, ...]
    cache: Path
    """Folder of the hub cache."""
    choice: FileFilter = field(default_factory=FileFilter)
    local_dir: Path | None = None
    """Folder for plain files, used instead of the cache."""
    locked: Plan | None = None
    """Plan from a lock file: exactly these files, whatever the hub offers now."""
    known: Plan | None = None
    """Plan of the whole repo, if it was already requested."""
    rule: TokenRule = field(default_factory=TokenRule)
    offline: bool = False
    limits: Limits = field(default_factory=Limits)
    memory: ProbeHistory = field(default_factory=ProbeHistory)
    """Results of earlier pulls."""

    @property
    def place(self) -> Place:
        if self.local_dir:
            return Place(self.local_dir, is_cache=False)
        return Place(self.cache / self.ref.cache_name, is_cache=True)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The outcome of a pull, or the expected one after a dry run."""

    plan: Plan
    folder: Path
    """Folder with the files under their names in the repo."""
    missing: tuple[PlannedFile, ...]
    """Files that had to be downloaded."""
    received: int
    """File bytes received over the network."""
    seconds: float
    served: dict[str, int]
    """File bytes received from each endpoint."""


def pull(request: PullRequest, *, dry_run: bool = False, report: Report = silent) -> Pulled:
    """Download and verify the wanted files. After a kill the same pull resumes.

    Nothing is written before the plan is complete and fits on the disk; a file gets its name once
    its hash is right, and the cache its snapshot once all files are there. Raises DownloadError,
    OutputError or SpaceError.
    """
    started = time.monotonic()
    place = request.place
    whole = request.locked or request.known or plan_of(request, place, report)
    plan = whole if request.locked else choose(whole, request.choice)
    if request.offline or plan.unasked:
        return pull_offline(request, plan, dry_run=dry_run, report=report)
    missing = tuple(file for file in plan.files if not place.has(file, request.limits))
    workers = None
    if not dry_run:
        check_place(place, plan)
        check_space(place, missing, request.limits)
        prepare(place)
        if place.is_cache and not request.locked:
            remember(whole, place)
        if missing:
            workers = make_workers(request, plan, missing, report)
            fetch(workers, plan, missing, report)
            learn(workers, request.memory)
        finish(place, plan)
    return Pulled(
        plan,
        place.folder(plan.commit),
        missing,
        workers.received if workers else 0,
        time.monotonic() - started,
        dict(workers.served) if workers else {},
    )


def pull_offline(request: PullRequest, plan: Plan, *, dry_run: bool, report: Report) -> Pulled:
    """Serve a pull from the cache, when decant is offline or no endpoint answers.

    Raises DownloadError if wanted files are missing.
    """
    started = time.monotonic()
    place, commit = request.place, plan.commit
    missing = tuple(file for file in plan.files if not is_here(place, commit, file, request.limits))
    if not dry_run:
        refuse_parts(request, plan, missing)
        check_place(place, plan)
        check_sha256(plan, place)
        unlinked = tuple(f for f in plan.files if not (place.folder(commit) / f.path).exists())
        if unlinked:
            prepare(place)
            link_snapshot(place, replace(plan, files=unlinked))
        if plan.unasked:
            report(
                Note(
                    f"{plan.unasked.message}: using {plan.ref.repo}@{plan.ref.revision} from the"
                    f" cache, commit {commit[:12]}"
                )
            )
    return Pulled(plan, place.folder(commit), missing, 0, time.monotonic() - started, {})


def plan_of(request: PullRequest, place: Place, report: Report) -> Plan:
    """The plan of the whole repo, from an endpoint, else from the cache where none answers.

    Raises DownloadError when decant is offline and the cache has no plan, and UnansweredError when
    no endpoint answers and the cache has none either.
    """
    cached = cached_plan(request.ref, request.cache, place)
    if request.offline and cached:
        return cached
    if request.offline:
        raise DownloadError(
            f"{request.ref.repo}@{request.ref.revision} is not here, and decant is offline",
            hint=ONLINE,
        )
    try:
        plan = make_plan(
            request.ref,
            request.endpoints,
            request.rule,
            request.limits,
            memory=request.memory,
            is_cached=cached is not None,
            report=report,
        )
    except UnansweredError as error:
        if cached is None:
            raise
        return replace(cached, unasked=error)
    match plan.hashes_from:
        case _ if plan.is_reference:
            pass
        case (mirror,):
            report(
                Note(
                    f"the hashes come from {mirror} alone: they prove that nothing was"
                    " damaged on the way, not that the mirror is honest"
                )
            )
        case mirrors:
            report(Note(f"the hashes are those that {' and '.join(mirrors)} agree on"))
    return plan


def remember(plan: Plan, place: Place) -> None:
    """Save the plan of the commit, so that offline runs know whether files are missing."""
    path = place.own / f"{plan.commit}.json"
    if not path.exists():
        write_plan(plan, path, place)


def refuse_parts(request: PullRequest, plan: Plan, missing: Sequence[PlannedFile]) -> None:
    """Raise DownloadError if files are missing and no endpoint can be asked."""
    is_chosen = request.choice.files or plan.ref.file
    problem = None if is_chosen else gap(request.place, plan)
    if missing:
        problem = f"{len(missing)} files are not here, such as `{missing[0].path}`"
    if problem and plan.unasked:
        raise DownloadError(
            f"{plan.unasked.message}; and the cache has only a part of {plan.ref.repo}@"
            f"{plan.ref.revision}: {problem}",
            hint=plan.unasked.hint,
        )
    if missing:
        raise DownloadError(f"{problem}, and decant is offline", hint=ONLINE)


def make_workers(
    request: PullRequest, plan: Plan, missing: Sequence[PlannedFile], report: Report
) -> Workers:
    """The workers that fetch the missing files from the request's endpoints."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazily exported

    read_more_at_once()
    headers = build_hf_headers(token=False, library_name="decant")
    wire = Wire(get_session(), request.rule, request.limits, headers)
    transfers = [
        Transfer(
            file,
            {endpoint: Source(plan, file, endpoint, wire) for endpoint in request.endpoints},
            request.limits,
        )
        for file in missing
    ]
    for endpoint in request.endpoints:
        if endpoint.kind == "modelscope":
            listed = modelscope_files(endpoint, plan, wire)
            for transfer in transfers:
                if listed.get(transfer.file.path) != (transfer.file.size, transfer.file.etag):
                    transfer.banned[endpoint] = "does not have it with the planned sha256"
    health = healths(request.endpoints, request.limits, request.memory)
    for endpoint in request.endpoints:
        if any(request.memory.lacks(endpoint.url, what) for what in LACKS):
            health[endpoint].doubt()
    return Workers(transfers, health, request.place, request.limits, report)


def read_more_at_once() -> None:
    """Make connections read GATHER bytes at a time instead of 64 KiB: fewer rounds of Python."""
    import httpcore2

    httpcore2.HTTP11Connection.READ_NUM_BYTES = GATHER


def fetch(workers: Workers, plan: Plan, missing: Sequence[PlannedFile], report: Report) -> None:
    """Run the workers; report the kept bytes on Ctrl-C."""
    total = sum(file.size for file in missing)
    report(Step(f"downloading {len(missing)} files, {size_text(total)}, of {plan.ref.repo}"))
    try:
        workers.run()
    except KeyboardInterrupt:
        report(
            Warn(
                f"stopped: {size_text(workers.kept)} of {size_text(total)} are kept;"
                " the same command resumes from there"
            )
        )
        raise


def learn(workers: Workers, memory: ProbeHistory) -> None:
    """Record which endpoints sent bytes, which failed, and over how many connections."""
    for health in workers.healths.values():
        health.learn()
    worked = [end.url for end, health in workers.healths.items() if workers.served[end.name]]
    failed = [
        end.url
        for end, health in workers.healths.items()
        if health.failures and health.problem and not workers.served[end.name]
    ]
    if worked:
        memory.learn("bytes", failed=failed, worked=worked)


def finish(place: Place, plan: Plan) -> None:
    """Publish the result: links in the cache, or a lock file in a plain folder."""
    check_sha256(plan, place)
    if place.is_cache:
        link_snapshot(place, plan)
    else:
        write_plan(with_sha256(plan, place), place.root / NAME, place)
