"""The plan of a pull: the commit and its files, with sizes and hashes."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from exporter.core.errors import DownloadError, InputError
from exporter.core.events import Note, Report, Step, silent
from exporter.hub.access_token import TokenRule
from exporter.hub.endpoints import Endpoint
from exporter.hub.probe_history import ProbeHistory
from exporter.hub.repo_refs import COMMIT, Ref, unsafe
from exporter.hub.timeouts import Limits

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ROUNDS = 4  # of requests to all endpoints, for passing errors
SHA256, GIT = 64, 40  # hex digits of a hash
ANOTHER = "another endpoint may: export HF_ENDPOINT=https://hf-mirror.com,https://huggingface.co"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file, identified by its content."""

    path: str
    """Path in the repo, with slashes; checked to stay inside its folder."""
    size: int
    etag: str
    """Hex sha256 of the content for LFS files, git's blob id for the others."""
    sha256: str | None = None
    """Additional sha256, if a lock file has one."""

    def hasher(self) -> hashlib._Hash:
        """A new hash object whose digest of the content equals `etag`."""
        if len(self.etag) == SHA256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)  # git's blob id


@dataclass(frozen=True, slots=True)
class Plan:
    """The wanted files of one commit."""

    ref: Ref
    commit: str
    files: tuple[PlannedFile, ...]
    hashes_from: tuple[str, ...]
    """The hosts that gave these hashes; all of them agree."""
    is_reference: bool
    """Whether one of them is the hub itself, not a mirror of it."""
    unasked: DownloadError | None = field(default=None, compare=False)
    """Why the plan comes from the cache: the error of the endpoints."""

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)


class UnansweredError(DownloadError):
    """No endpoint knows what a revision holds, and none denies that it exists."""


@dataclass(frozen=True, slots=True)
class FileFilter:
    """The wanted files of a repo, as names or patterns; all of them if empty."""

    files: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def make_plan(
    ref: Ref,
    endpoints: Sequence[Endpoint],
    rule: TokenRule,
    limits: Limits,
    *,
    memory: ProbeHistory | None = None,
    is_cached: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    report: Report = silent,
) -> Plan:
    """Ask the hub, else its mirrors in order, for all files of `ref`.

    The hub's answer suffices; a mirror's is compared with every other mirror's. Passing errors are
    retried, but silence is not if the revision `is_cached`. Raises DownloadError with each
    endpoint's answer; it is UnansweredError where the cache may be used instead.
    """
    memory = memory or ProbeHistory()
    hubs = [endpoint for endpoint in endpoints if endpoint.kind == "hub"]
    hubs.sort(key=lambda endpoint: not endpoint.is_reference)
    answers: dict[Endpoint, Answer] = {}
    for turn in range(ROUNDS):
        for endpoint in hubs:
            if endpoint in answers and answers[endpoint].is_final:
                continue
            report(Step(f"asking {endpoint.name} for {ref.repo}@{ref.revision}"))
            is_brief = turn == 0 and memory.lacks(endpoint.url, "answers")
            answer = ask(ref, endpoint, rule, limits.probe_s if is_brief else limits.connect_s)
            if isinstance(answer, Plan):
                silent_ones = [one.url for one, gave in answers.items() if gave.is_silence]
                memory.learn("answers", failed=silent_ones, worked=[endpoint.url])
                others = [hub for hub in hubs if hub != endpoint and hub not in answers]
                return compared(answer, others, rule, limits)
            report(Note(f"{endpoint.name} {answer.problem}"))
            answers[endpoint] = answer
            if answer.is_final and endpoint.is_reference:
                raise refused(ref, answers)
        waits = [answer.wait_s for answer in answers.values() if not answer.is_final]
        if not waits or (is_cached and not any(answer.wants_time for answer in answers.values())):
            break
        if turn + 1 < ROUNDS:
            sleep(min(max(min(waits), limits.backoff_s * 2**turn), limits.retry_after_max_s))
    raise refused(ref, answers)


@dataclass(frozen=True, slots=True)
class Answer:
    """The reason why an endpoint gave no plan."""

    problem: str
    is_final: bool
    """Whether asking again is pointless."""
    wait_s: float = 0.0
    hint: str | None = None
    is_silence: bool = False
    """Whether it did not answer at all."""
    has_no_revision: bool = False
    """Whether it has the repo but not the revision."""

    @property
    def wants_time(self) -> bool:
        """Whether it answered and may succeed when asked again."""
        return not self.is_final and not self.is_silence


def compared(plan: Plan, others: Sequence[Endpoint], rule: TokenRule, limits: Limits) -> Plan:
    """The plan, confirmed by all mirrors that agree. Raises DownloadError if one differs."""
    if plan.is_reference:
        return plan
    for endpoint in others:
        second = ask(replace(plan.ref, revision=plan.commit), endpoint, rule, limits.probe_s)
        if isinstance(second, Answer) or second.commit != plan.commit:
            continue  # it does not know this commit, which does not contradict the plan
        if odd := set(plan.files) ^ set(second.files):
            path = min(file.path for file in odd)
            raise DownloadError(
                f"{plan.hashes_from[0]} and {endpoint.name} disagree about `{path}` in commit"
                f" {plan.commit[:12]} of {plan.ref.repo}: one of them cannot be trusted",
                hint="ask the hub itself, or name only the endpoint that you trust:"
                " export HF_ENDPOINT=https://huggingface.co",
            )
        plan = replace(plan, hashes_from=(*plan.hashes_from, endpoint.name))
    return plan


def ask(ref: Ref, endpoint: Endpoint, rule: TokenRule, timeout_s: float) -> Plan | Answer:
    """Send one request to one endpoint for the repo's files."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(
        endpoint=endpoint.url, token=rule.token_for(endpoint.url) or False, library_name="decant"
    )
    try:
        info = api.repo_info(
            ref.repo,
            revision=ref.revision,
            repo_type=ref.repo_type,
            files_metadata=True,
            timeout=timeout_s,
        )
        return read_info(ref, endpoint, info)
    except HfHubHTTPError as error:
        return http_answer(ref, endpoint, error)
    except httpx2.HTTPError as error:
        problem = f"cannot be reached: {type(error).__name__}"
        return Answer(problem, is_final=False, is_silence=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Answer("answers with something that is not the hub's", is_final=True)


def http_answer(ref: Ref, endpoint: Endpoint, error: HfHubHTTPError) -> Answer:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        problem = f"has no revision {ref.revision!r} of it"
        return Answer(problem, is_final=True, has_no_revision=True)
    if isinstance(error, GatedRepoError):
        return Answer(
            "says that it is gated",
            is_final=True,
            hint=f"ask for access at {endpoint.url}/{ref.repo}, then log in: hf auth login",
        )
    if status in (401, 403, 404):
        return Answer(
            f"does not have it, or not for you ({status})",
            is_final=True,
            hint="is the name right? a private repo needs a token: hf auth login",
        )
    wait_s = retry_after(error.response.headers.get("Retry-After"))
    passing = status in (408, 429) or status >= 500  # noqa: PLR2004 - HTTP
    return Answer(f"answers {status}", is_final=not passing, wait_s=wait_s)


def retry_after(value: str | None, *, default: float = 0.0) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date."""
    if value is None:
        return default
    if value.strip().isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return default


def refused(ref: Ref, answers: dict[Endpoint, Answer]) -> DownloadError:
    problems = "; ".join(
        f"{endpoint.name} {answer.problem}" for endpoint, answer in answers.items()
    )
    hints = [answer.hint for answer in answers.values() if answer.hint]
    is_known = any(answer.has_no_revision for answer in answers.values())
    return (DownloadError if is_known else UnansweredError)(
        f"no endpoint says what {ref.repo} holds: {problems}",
        hint=hints[0] if hints else ANOTHER,
    )


def read_info(ref: Ref, endpoint: Endpoint, info: Any) -> Plan:  # Any: three classes, no base
    """Parse a hub's answer into a plan. Raises ValueError for malformed hashes or sizes."""
    if not COMMIT.fullmatch(info.sha or ""):
        raise ValueError(info.sha)
    files = []
    for sibling in info.siblings or ():
        etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        size = sibling.lfs.size if sibling.lfs else sibling.size
        digits = SHA256 if sibling.lfs else GIT
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", etag or "") or type(size) is not int:
            raise ValueError(etag)
        files.append(PlannedFile(sibling.rfilename, size, etag))
    return Plan(ref, info.sha, tuple(files), (endpoint.name,), endpoint.is_reference)


def choose(plan: Plan, choice: FileFilter) -> Plan:
    """Reduce a plan to the wanted files.

    Raises InputError for an unknown file, DownloadError for a path that would leave its folder.
    """
    names = [file.path for file in plan.files]
    wanted = tuple(choice.files) or ((plan.ref.file,) if plan.ref.file else ())
    if missing := [name for name in wanted if name not in names]:
        raise InputError(
            f"{plan.ref.repo}@{plan.ref.revision} has no file {missing[0]!r}",
            hint=f"it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}",  # noqa: PLR2004
        )
    files = tuple(file for file in plan.files if is_wanted(file.path, plan.ref, wanted, choice))
    if not files:
        raise InputError(
            f"none of the {len(names)} files of {plan.ref.repo} is wanted",
            hint=f"to list them: decant pull {plan.ref.repo} --dry-run",
        )
    refuse_unsafe(files, " and ".join(plan.hashes_from))
    return replace(plan, files=files)


def is_wanted(path: str, ref: Ref, wanted: tuple[str, ...], choice: FileFilter) -> bool:
    if wanted:
        return path in wanted
    if ref.folder and not path.startswith(f"{ref.folder}/"):
        return False
    if choice.include and not any(fits(path, pattern) for pattern in choice.include):
        return False
    return not any(fits(path, pattern) for pattern in choice.exclude)


def fits(path: str, pattern: str) -> bool:
    """Match a pattern as huggingface_hub does: `*` crosses slashes, `folder/` means all in it."""
    return fnmatch.fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)


def refuse_unsafe(files: Sequence[PlannedFile], host: str) -> None:
    """Raise DownloadError for a path that is unsafe to write, naming the host that sent it."""
    folders = {
        "/".join(file.path.split("/")[:depth])
        for file in files
        for depth in range(1, file.path.count("/") + 1)
    }
    for file in files:
        problem = unsafe(file.path)
        if not problem and file.path in folders:
            problem = "is a file and a folder"
        if not problem and file.path.split("/")[0].lower() in (".decant", "decant.lock.json"):
            problem = "is a name that decant itself uses"
        if problem:
            raise DownloadError(
                f"{host} names a file {file.path[:80]!r}, which {problem}",
                hint="nothing was written; leave it out with --exclude if you trust the rest",
            )
