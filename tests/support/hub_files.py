"""A fake hub's files, its faults, and the requests that it received."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from functools import lru_cache

REPO = "org/model"
COMMIT = "c0ffee" + "0" * 34


@lru_cache(maxsize=8)
def random_bytes(size: int, seed: int = 0) -> bytes:
    source = random.Random(seed)
    pieces = [source.randbytes(min(1 << 24, size - at)) for at in range(0, size, 1 << 24)]
    return b"".join(pieces)


@dataclass
class FakeFile:
    """A file's content; a file with a size but no content must never be requested."""

    data: bytes = b""
    is_lfs: bool = True
    size: int = -1
    etag: str = ""

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = len(self.data)
        if not self.etag:
            header = b"" if self.is_lfs else b"blob %d\0" % self.size
            kind = hashlib.sha256 if self.is_lfs else hashlib.sha1
            self.etag = kind(header + self.data).hexdigest()


@dataclass
class Faults:
    """The faults of a hub. Sizes are bytes of one answer's body, unless a field says otherwise."""

    cut_after: int | None = None
    cut_with: str = "fin"
    """The TCP packet that cuts the connection: `fin` or `rst`."""
    stall_after: int | None = None
    rate: float | None = None
    """Bytes per second of one connection."""
    flip: bool = False
    """Whether one byte in the middle of each file is wrong."""
    no_ranges: bool = False
    html_files: bool = False
    """Whether every file is a login page with status 200."""
    html_api: bool = False
    no_commit: bool = False
    """Whether the hub has only the revision `main`, not the commit."""
    to_hub: bool = False
    """Whether every file redirects to huggingface.co (308)."""
    api_status: list[int] = field(default_factory=list)
    """The statuses of the next answers of the API."""
    busy: int = 0
    """The number of answers that are 429 with `Retry-After: 1`."""
    signed_uses: int | None = None
    """The number of requests after which a signed address answers 403."""
    data_origin: str | None = None
    """The origin of signed addresses, to which files redirect (302)."""
    other_version: bool = False
    slots: int | None = None
    """The most connections that are served at a time; others wait."""
    most: int | None = None
    """The most connections that are served at a time; others get `refusal`."""
    refusal: int | str = 429
    """The answer to one request too many: a status, `html` (a page, 200), `rst` or `fin`."""
    refusal_wait: int | None = None
    """The refusal's Retry-After, in seconds."""
    is_per_file: bool = False
    """Whether `most` counts the connections of each file separately."""
    is_for_ranges: bool = False
    """Whether `most` counts only requests with a Range."""
    per_window: int | None = None
    """The most requests for files in each `window_s` seconds; others get `refusal`."""
    window_s: float = 1.0
    gated: bool = False
    nameless: bool = False
    """Whether answers name neither the file's hash nor the commit."""


@dataclass(frozen=True)
class Request:
    """One request that the hub received."""

    method: str
    path: str
    range: str | None
    authorization: str | None
