"""The pull: plan, space, bytes, place, in this order."""

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
from exporter.hub.probe_history import LACKS, Memory
from exporter.hub.publish import Place, check_place, check_space, link_snapshot, prepare
from exporter.hub.pull_plan import Choice, Plan, PlannedFile, UnansweredError, choose, make_plan
from exporter.hub.repo_refs import Ref
from exporter.hub.source import Source, Wire, modelscope_files
from exporter.hub.timeouts import Limits
from exporter.hub.transfer import GATHER, Transfer
from exporter.hub.workers import Crew

ONLINE = "leave out --offline, and unset HF_HUB_OFFLINE"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to bring, from where, to where."""

    ref: Ref
    endpoints: tuple[Endpoint, ...]
    cache: Path
    """The hub cache."""
    choice: Choice = field(default_factory=Choice)
    local_dir: Path | None = None
    """Plain files go here instead of into the cache."""
    locked: Plan | None = None
    """Exactly this, whatever the hub says now."""
    known: Plan | None = None
    """All that the repo holds, where it was asked before."""
    rule: TokenRule = field(default_factory=TokenRule)
    offline: bool = False
    limits: Limits = field(default_factory=Limits)
    memory: Memory = field(default_factory=Memory)
    """Which endpoints did not work lately."""

    @property
    def place(self) -> Place:
        if self.local_dir:
            return Place(self.local_dir, is_cache=False)
        return Place(self.cache / self.ref.cache_name, is_cache=True)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is here now, or would be after a dry run."""

    plan: Plan
    folder: Path
    """Holds the files under their names in the repo."""
    missing: tuple[PlannedFile, ...]
    """Those that were not here before."""
    received: int
    """Bytes of files that came over the network."""
    seconds: float
    served: dict[str, int]
    """Bytes of files that each endpoint sent."""


def pull(request: PullRequest, *, dry_run: bool = False, report: Report = silent) -> Pulled:
    """Bring the wanted files here, verified. Killed at any moment, it goes on from there.

    Nothing is written before the plan stands and fits; a file appears under its name when its
    hash is right, and the snapshot in the cache when all files are there.
    """
    started = time.monotonic()
    place = request.place
    whole = request.locked or request.known or plan_of(request, place, report)
    plan = whole if request.locked else choose(whole, request.choice)
    if request.offline or plan.unasked:
        return take(request, plan, dry_run=dry_run, report=report)
    missing = tuple(file for file in plan.files if not place.has(file, request.limits))
    crew = None
    if not dry_run:
        check_place(place, plan)
        check_space(place, missing, request.limits)
        prepare(place)
        if place.is_cache and not request.locked:
            remember(whole, place)
        if missing:
            crew = hire(request, plan, missing, report)
            fetch(crew, plan, missing, report)
            learn(crew, request.memory)
        finish(place, plan)
    return Pulled(
        plan,
        place.folder(plan.commit),
        missing,
        crew.received if crew else 0,
        time.monotonic() - started,
        dict(crew.served) if crew else {},
    )


def take(request: PullRequest, plan: Plan, *, dry_run: bool, report: Report) -> Pulled:
    """What the cache holds, where nobody is asked or nobody answers.

    Raises DownloadError where it is not all that is wanted.
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
    """All that the repo holds: the hub's word, or what the cache knows where nobody gives it."""
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
    """Keep what the commit holds, so that completeness can be told without a network."""
    path = place.own / f"{plan.commit}.json"
    if not path.exists():
        write_plan(plan, path, place)


def refuse_parts(request: PullRequest, plan: Plan, missing: Sequence[PlannedFile]) -> None:
    """DownloadError where files are missing that nobody can be asked for."""
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


def hire(request: PullRequest, plan: Plan, missing: Sequence[PlannedFile], report: Report) -> Crew:
    """The crew that will fetch the missing files from the request's endpoints."""
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
    return Crew(transfers, health, request.place, request.limits, report)


def read_more_at_once() -> None:
    """Have connections read GATHER bytes at a time, not 64 KiB: fewer rounds through Python."""
    import httpcore2

    httpcore2.HTTP11Connection.READ_NUM_BYTES = GATHER


def fetch(crew: Crew, plan: Plan, missing: Sequence[PlannedFile], report: Report) -> None:
    """Let the crew work; say what is kept when it is interrupted."""
    total = sum(file.size for file in missing)
    report(Step(f"downloading {len(missing)} files, {size_text(total)}, of {plan.ref.repo}"))
    try:
        crew.run()
    except KeyboardInterrupt:
        report(
            Warn(
                f"stopped: {size_text(crew.kept)} of {size_text(total)} are kept;"
                " the same command resumes from there"
            )
        )
        raise


def learn(crew: Crew, memory: Memory) -> None:
    """Remember who sent bytes, who failed to, and over how many connections."""
    for health in crew.healths.values():
        health.learn()
    worked = [end.url for end, health in crew.healths.items() if crew.served[end.name]]
    failed = [
        end.url
        for end, health in crew.healths.items()
        if health.failures and health.problem and not crew.served[end.name]
    ]
    if worked:
        memory.learn("bytes", failed=failed, worked=worked)


def finish(place: Place, plan: Plan) -> None:
    """Make the result visible: links in the cache, a lock file in a folder."""
    check_sha256(plan, place)
    if place.is_cache:
        link_snapshot(place, plan)
    else:
        write_plan(with_sha256(plan, place), place.root / NAME, place)
