"""What a fake hub serves, what goes wrong with it, and what it was asked."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

REPO = "org/model"
COMMIT = "c0ffee" + "0" * 34


def random_bytes(size: int, seed: int = 0) -> bytes:
    source = random.Random(seed)
    pieces = [source.randbytes(min(1 << 24, size - at)) for at in range(0, size, 1 << 24)]
    return b"".join(pieces)


@dataclass
class FakeFile:
    """Content under a name; a size without content is a file nobody should ask for."""

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
    """What goes wrong. Sizes are bytes of one answer's body, unless said otherwise."""

    cut_after: int | None = None
    cut_with: str = "fin"
    """Or rst."""
    stall_after: int | None = None
    rate: float | None = None
    """Bytes a second of one connection."""
    flip: bool = False
    """One byte in the middle of each file is wrong."""
    no_ranges: bool = False
    html_files: bool = False
    """A login page, with status 200, in place of every file."""
    html_api: bool = False
    no_commit: bool = False
    """Only `main` is cached here, not the commit."""
    to_hub: bool = False
    """308 to huggingface.co for every file."""
    api_status: list[int] = field(default_factory=list)
    """Answers to the next requests to the API."""
    busy: int = 0
    """So many answers are 429 with `Retry-After: 1`."""
    signed_uses: int | None = None
    """Signed addresses answer 403 after so many requests."""
    data_origin: str | None = None
    """Files are 302 to a signed address there."""
    other_version: bool = False
    slots: int | None = None
    """Most connections served at a time; others wait."""
    most: int | None = None
    """Most connections served at a time; others get `refusal`."""
    refusal: int | str = 429
    """A status, `html` (a page with status 200), `rst` or `fin`."""
    refusal_wait: int | None = None
    """Its Retry-After."""
    is_per_file: bool = False
    """`most` counts the connections of each file."""
    is_for_ranges: bool = False
    """`most` counts requests with a Range only."""
    per_window: int | None = None
    """Most requests for files in each `window_s` seconds; others get `refusal`."""
    window_s: float = 1.0
    gated: bool = False
    nameless: bool = False
    """Answers say nothing of hash or commit."""


@dataclass(frozen=True)
class Request:
    """One request as it was seen."""

    method: str
    path: str
    range: str | None
    authorization: str | None
