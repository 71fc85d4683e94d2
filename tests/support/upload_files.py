"""A fake hub's repos, its faults, and the requests that it received, for uploads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.support.hub_files import FakeFile

TOKEN = "hf_secretsecretsecret"


@dataclass(frozen=True)
class UploadRequest:
    """One request that the hub received, with as much of its body as arrived."""

    method: str
    host: str
    path: str
    authorization: str | None
    body: bytes


@dataclass
class FakeRepo:
    """A repo: the files of its head, and its commits."""

    private: bool = False
    files: dict[str, FakeFile] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    history: dict[str, dict[str, FakeFile]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit(".gitattributes", self.files)

    def commit(self, title: str, changed: dict[str, FakeFile]) -> str:
        self.files = {**self.files, **changed}
        number = f"{len(self.commits)} {title} {sorted(self.files)}"
        self.commits.append(hashlib.sha1(number.encode()).hexdigest())
        self.history[self.head] = self.files
        return self.head

    @property
    def head(self) -> str:
        return self.commits[-1]


@dataclass
class UploadFaults:
    """The faults of a hub that takes uploads; lists are used up, one entry a request."""

    api: list[int] = field(default_factory=list)
    put: list[int] = field(default_factory=list)
    """Statuses of the next answers to large files."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the connection of the next large files is reset."""
    commit: list[int] = field(default_factory=list)
    lost: int = 0
    """The number of commits that are made and whose answer never comes."""
    rivals: int = 0
    """The number of commits before which another one is made."""
    rival_file: tuple[str, bytes] = ("rival.txt", b"rival")
    gated: bool = False
    """Whether readers must ask for access first."""
    dropped: str = ""
    """A file that commits leave out without saying so."""
    redirect: str | None = None
    """The origin to which the API redirects (307)."""
    next_page: str | None = None
    """The origin to which the list of files refers for more of it."""
    store: str | None = None
    """The origin of the addresses for large files; None for the hub itself."""
    chunk: int | None = None
    """Bytes of a part, if large files go in parts."""
    verify: bool = True
    """Whether the hub asks to be told of each large file."""
    largest: int | None = None
    hold: str = ""
    """The step at which the hub waits: read, create, preupload, batch, put, verify or commit."""
    hold_after: bool = False
    """Whether it waits after the step is done, and before it answers."""
    rate: float | None = None
    """Bytes of a large file per second."""
