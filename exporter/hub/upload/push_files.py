"""Uploads files to a repo in one commit: those it lacks, each checked by its hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, TypeAlias, cast

from exporter.core.errors import InputError, UploadError
from exporter.core.events import Note, Report, Step, Warn, silent
from exporter.core.paths import size_text
from exporter.core.version import own_version
from exporter.hub.endpoints import Endpoint
from exporter.hub.timeouts import Limits
from exporter.hub.upload.remote_repo import (
    CARD,
    RemoteRepo,
    git_hash,
    read_card,
    read_files,
    read_repo,
)
from exporter.hub.upload.sent_file import LocalFile, SentFile
from exporter.hub.upload.upload_errors import (
    AGAIN,
    CONFLICTS,
    TRIES,
    UploadErrors,
    is_passing,
    library_errors,
    status_of,
)
from exporter.hub.upload.upload_guard import UploadGuard, guarded

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

State: TypeAlias = Literal["to send", "stored", "there"]
"""`stored`: the hub has the bytes from an earlier try, but no commit names them."""
SMALL = 10 << 20  # bytes up to which git's hash of a file may be needed: the hub's own limit


class Card(Protocol):
    """Writes the README.md of the repo."""

    def text(
        self, remote: RemoteRepo | None, hashes: Mapping[str, str], old: str | None
    ) -> str | None:
        """The card for these files, after the repo's README `old`; None to keep that one."""
        ...


@dataclass(frozen=True, slots=True)
class PushRequest:
    """An upload: which files, to which repo of which hub."""

    repo: str
    endpoint: Endpoint
    token: str = field(repr=False)
    files: tuple[LocalFile, ...] = ()
    private: bool = False
    """Whether the repo must be private; it is created so."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class PushedFile:
    """One file of an upload, and where it was before."""

    name: str
    nbytes: int
    sha256: str
    state: State


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of an upload, or the expected one after a dry run."""

    repo: str
    url: str
    commit: str
    """The commit that holds all files; empty after a dry run."""
    is_new: bool
    is_private: bool | None
    """None for a repo that does not exist yet and gets its owner's default."""
    files: tuple[PushedFile, ...]
    card: str
    """The text of README.md; empty if the repo's own is kept."""
    card_state: Literal["to send", "there", "kept"]
    sent: int
    """Bytes of the files that were sent, or would be."""


def push(
    request: PushRequest, card: Card, *, dry_run: bool = False, report: Report = silent
) -> Pushed:
    """Create the repo if it is missing, send what it lacks, and commit it all at once.

    Until the commit the repo shows nothing of it; after a kill the same push sends only the files
    that the hub does not have. Raises UploadError, InputError.
    """
    guard = UploadGuard(request.endpoint, request.token)
    with guarded(guard, request.limits, report=report), ExitStack() as stack:
        return Upload(request, card, report, stack).run(dry_run=dry_run)


def refuse_ahead(request: PushRequest, *, report: Report = silent) -> None:
    """Raise the errors of `push` that show before there is a file: of the token and the repo."""
    guard = UploadGuard(request.endpoint, request.token)
    with guarded(guard, request.limits, report=report), ExitStack() as stack:
        Upload(request, None, report, stack).read()


class Upload:
    """One run of `push`."""

    def __init__(
        self, request: PushRequest, card: Card | None, report: Report, stack: ExitStack
    ) -> None:
        from huggingface_hub import HfApi

        self.request, self.card, self.report, self.stack = request, card, report, stack
        self.repo = request.repo
        self.errors = UploadErrors(
            request.endpoint, request.repo, request.limits, report, request.token
        )
        self.api: HfApi = HfApi(
            endpoint=request.endpoint.url,
            token=request.token,
            library_name="decant",
            library_version=own_version(),
        )
        self.files: dict[str, SentFile] = {}
        self.operations: dict[str, CommitOperationAdd] = {}
        self.blobs: dict[str, str] = {}
        """git's hashes of small files."""

    def run(self, *, dry_run: bool) -> Pushed:
        """Do the upload. Raises the errors of `push`."""
        self.report(Step(f"asking {self.request.endpoint.name} for {self.repo}"))
        remote = before = self.read()
        self.hash_files()
        if dry_run:
            return self.result(before, remote, *self.card_for(remote), commit="", dry_run=True)
        if remote is None:
            remote = self.create()
        elif remote.is_private:
            self.report(Note(f"{self.repo} is private and stays private"))
        for tried in range(1, TRIES + 1):
            text, operation = self.card_for(remote)
            lacking = self.lacking(remote)
            self.send(lacking)
            wanted = [*(self.operations[name] for name in lacking), *operation]
            commit = self.commit(wanted, remote, last=tried == TRIES) if wanted else remote.commit
            if commit:
                self.check(commit, text)
                return self.result(before, remote, text, operation, commit=commit)
            remote = self.read() or remote
        raise AssertionError("the last try commits or raises")

    def read(self) -> RemoteRepo | None:
        """The repo's state. Raises InputError for a public one if it must be private."""
        reading = f"reading {self.repo}"
        remote = self.errors.patiently(lambda: read_repo(self.api, self.repo), reading)
        if self.request.private and remote and not remote.is_private:
            raise InputError(
                f"{self.repo} exists and is public: --private does not hide what it shows already",
                hint="make it private on the hub first, name another repo, or leave out --private",
            )
        return remote

    def hash_files(self) -> None:
        """Open and hash every file. Raises InputError for one that cannot be read."""
        from huggingface_hub import CommitOperationAdd

        for file in self.request.files:
            sent = self.stack.enter_context(SentFile(file, report=self.report))
            self.files[file.name] = sent
        total = sum(sent.size for sent in self.files.values())
        self.report(Step(f"hashing {files_text(len(self.files))}, {size_text(total)}"))
        for name, sent in self.files.items():
            operation = CommitOperationAdd(name, cast("BinaryIO", sent))
            if sent.size <= SMALL:
                self.blobs[name] = git_hash(sent.read())
                sent.seek(0)
            sent.expect(operation.upload_info.sha256)
            self.operations[name] = operation

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each file, by its path in the repo."""
        return {name: one.upload_info.sha256.hex() for name, one in self.operations.items()}

    def lacking(self, remote: RemoteRepo | None) -> list[str]:
        """The files that the repo lacks or has with another content."""
        there = remote.files if remote else {}
        return [
            name
            for name, sha256 in self.hashes.items()
            if name not in there
            or not there[name].holds(self.files[name].size, sha256, self.blobs.get(name, ""))
        ]

    def card_for(self, remote: RemoteRepo | None) -> tuple[str, list[CommitOperationAdd]]:
        """The card's text and its operation; the latter only if the repo has another text."""
        from huggingface_hub import CommitOperationAdd

        reading = f"reading {CARD} of {self.repo}"
        old = (
            self.errors.patiently(lambda: read_card(self.api, self.repo, remote), reading)
            if remote
            else None
        )
        assert self.card is not None, "a push has a card"
        text = self.card.text(remote, self.hashes, old)
        if text is None or text == old:
            return text or "", []
        return text, [CommitOperationAdd(CARD, text.encode())]

    def create(self) -> RemoteRepo:
        """Create the repo, or use the one that another process has just created.

        Raises UploadError.
        """
        doing = f"creating {self.repo}"
        self.report(Step(doing))
        private = True if self.request.private else None  # None: as the owner's settings say

        def call() -> None:
            try:
                self.api.create_repo(self.repo, private=private)
            except library_errors() as error:
                if status_of(error) not in CONFLICTS:
                    raise

        self.errors.patiently(call, doing)
        remote = self.read()
        if remote is None:
            raise UploadError(
                f"{doing}: {self.request.endpoint.name} does not show it afterwards",
                hint="may the token read what it creates?",
            )
        return remote

    def send(self, names: Sequence[str]) -> None:
        """Send the bytes of large files, one after the other; small files go with the commit."""
        new = [name for name in names if self.operations[name]._upload_mode is None]  # noqa: SLF001
        nbytes = sum(self.files[name].size for name in new)
        if new:
            count = files_text(len(new))
            self.report(Step(f"sending {count}, {size_text(nbytes)}, to {self.repo}"))
        for done, name in enumerate(new):
            try:
                self.preupload(self.operations[name], f"sending {name}")
            except KeyboardInterrupt:
                self.report(
                    Warn(
                        f"stopped: {done} of {len(new)} files have arrived, and the repo shows none"
                        " of them yet; the same command sends the others and publishes all"
                    )
                )
                raise
            is_large = self.operations[name]._upload_mode == "lfs"  # noqa: SLF001
            if is_large and not self.files[name].hashed:
                self.report(Note(f"{name} was sent before"))

    def preupload(self, operation: CommitOperationAdd, doing: str) -> None:
        """Let huggingface_hub send one file, if the hub takes it as a large one and lacks it."""
        try:
            self.api.preupload_lfs_files(
                self.repo,
                [operation],
                num_threads=1,
                gitignore_content="",  # else a .gitignore of the repo drops files silently
            )
        except library_errors() as error:  # after the library's own retries
            raise self.errors.explained(error, doing) from None

    def commit(
        self, operations: Sequence[CommitOperationAdd], remote: RemoteRepo, *, last: bool
    ) -> str | None:
        """Commit onto the head; None if it must be read again, because it moved or no answer came.

        Raises UploadError.
        """
        doing = f"committing to {self.repo}"
        self.report(Step(doing))
        for operation in operations:
            if operation._upload_mode is None:  # noqa: SLF001 - the card's
                self.preupload(operation, doing)
        try:
            made = self.api.create_commit(
                self.repo,
                operations,
                commit_message=message_of([one.path_in_repo for one in operations]),
                parent_commit=remote.commit,
                num_threads=1,
            )
        except library_errors() as error:
            is_moved = status_of(error) in CONFLICTS
            if last or not (is_moved or is_passing(error)):
                raise self.errors.explained(error, doing) from None
            if is_moved:
                self.report(Note("another commit came first: committing onto the new head"))
            else:
                self.errors.wait(error, 1)
            return None
        return made.oid

    def check(self, commit: str, card: str) -> None:
        """Read the commit back. Raises UploadError if it lacks a file."""
        found = self.errors.patiently(
            lambda: read_files(self.api, self.repo, commit), f"reading {self.repo} back"
        )
        wrong = self.lacking(RemoteRepo(commit, is_private=False, files=found))
        content = card.encode()
        if card and (
            CARD not in found or not found[CARD].holds(len(content), "", git_hash(content))
        ):
            wrong.append(CARD)
        if wrong:
            raise UploadError(
                f"{self.repo} does not hold {', '.join(wrong)} after the commit", hint=AGAIN
            )

    def result(
        self,
        before: RemoteRepo | None,
        remote: RemoteRepo | None,
        card: str,
        operation: Sequence[CommitOperationAdd],
        *,
        commit: str,
        dry_run: bool = False,
    ) -> Pushed:
        """The summary; after a dry run, of what a push would do."""
        lacking = self.lacking(before)
        if dry_run:
            stored = self.stored(lacking) if before else set()
        else:
            stored = {n for n in lacking if self.files[n].size and not self.files[n].hashed}
        states: dict[str, State] = {
            name: "there" if name not in lacking else "stored" if name in stored else "to send"
            for name in self.files
        }
        files = [
            PushedFile(name, self.files[name].size, sha256, states[name])
            for name, sha256 in self.hashes.items()
        ]
        is_private = remote.is_private if remote else (True if self.request.private else None)
        return Pushed(
            self.repo,
            f"{self.request.endpoint.url}/{self.repo}",
            commit,
            before is None,
            is_private,
            tuple(files),
            card,
            "to send" if operation else "there" if card else "kept",
            sum(file.nbytes for file in files if file.state == "to send")
            + (len(card.encode()) if operation else 0),
        )

    def stored(self, names: Sequence[str]) -> set[str]:
        """The files whose bytes the hub has from an earlier try, shown by no commit."""
        from huggingface_hub.lfs import post_lfs_batch_info

        large = {self.hashes[name]: name for name in names if self.files[name].size}
        if not large:
            return set()
        infos = [self.operations[name].upload_info for name in large.values()]
        answers, _, _ = self.errors.patiently(
            lambda: post_lfs_batch_info(
                infos,
                token=self.request.token,
                repo_type="model",
                repo_id=self.repo,
                revision="main",
                endpoint=self.api.endpoint,
            ),
            f"asking what {self.repo} has",
        )
        return {large[one["oid"]] for one in answers if not one.get("actions")}


def files_text(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def message_of(names: Sequence[str]) -> str:
    """The title of the commit."""
    others = len(names) - 1
    more = f" and {others} more" if others else ""
    return f"Upload {names[0]}{more} with decant"
