"""Recognizes the kind of an image by its first bytes."""

from __future__ import annotations

# media type, offset, and the bytes at it
KINDS = (
    ("image/png", 0, b"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/gif", 0, b"GIF8"),
    ("image/bmp", 0, b"BM"),
    ("image/webp", 8, b"WEBP"),
)


def image_kind(data: bytes) -> str | None:
    """The media type of an image by its first bytes; None for other data."""
    for kind, at, magic in KINDS:
        if data[at : at + len(magic)] == magic:
            return kind
    return None
