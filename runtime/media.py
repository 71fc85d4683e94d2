"""What kind of picture some bytes are."""

from __future__ import annotations

# how a file of each kind begins, at which byte
KINDS = (
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/gif", 0, b"GIF8"),
    ("image/bmp", 0, b"BM"),
    ("image/webp", 8, b"WEBP"),
)


def image_kind(data: bytes) -> str | None:
    """The media type of a picture, by how it begins; None for anything else."""
    for kind, at, magic in KINDS:
        if data[at : at + len(magic)] == magic:
            return kind
    return None
