"""Reads the size of a decoded picture from its first bytes.

A file of a few kilobytes may claim a picture of gigabytes, which an engine would allocate.
"""

from __future__ import annotations

import base64
import binascii
import struct

HEAD = 1 << 20  # bytes of a picture that hold its size; a JPEG's preview precedes it
QUAD = 4  # characters of base64 for three bytes
SIZES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""JPEG's start-of-frame markers (SOF), whose segment holds the size."""
BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG's markers without a segment."""


def pixels_of(packed: str) -> int | None:
    """Number of pixels of a picture in base64; None when its format is unknown."""
    start = "".join(packed[: HEAD * 2].split())[:HEAD]
    try:
        raw = base64.b64decode(start[: len(start) // QUAD * QUAD] or start)
    except (binascii.Error, ValueError):
        return None
    return pixels(raw)


def pixels(raw: bytes) -> int | None:
    """Width times height, from the beginning of a PNG, GIF, BMP, WebP or JPEG."""
    try:
        size = size_of(raw)
    except (struct.error, IndexError):
        return None
    return abs(size[0] * size[1]) if size else None


def size_of(raw: bytes) -> tuple[int, int] | None:
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return unpacked(">II", raw, 16)
    if raw.startswith((b"GIF87a", b"GIF89a")):
        return unpacked("<HH", raw, 6)
    if raw.startswith(b"BM"):
        return unpacked("<ii", raw, 18)
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return webp(raw)
    return jpeg(raw) if raw.startswith(b"\xff\xd8") else None


def unpacked(code: str, raw: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(code, raw, at)
    return int(first), int(second)


def webp(raw: bytes) -> tuple[int, int] | None:
    """Width and height: https://developers.google.com/speed/webp/docs/riff_container, 3 forms."""
    match raw[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(raw[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
        case b"VP8L":
            bits = int.from_bytes(raw[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = unpacked("<HH", raw, 26)
            return width & 0x3FFF, height & 0x3FFF
        case _:
            return None


def jpeg(raw: bytes) -> tuple[int, int] | None:
    """Width and height of the first frame; skips the segments before it."""
    at = 2
    while raw[at] == 0xFF:  # noqa: PLR2004 - first byte of every marker
        marker = raw[at + 1]
        if marker in SIZES:
            return unpacked(">HH", raw, at + 5)
        if marker == 0xFF:  # noqa: PLR2004 - padding before a marker
            at += 1
        else:
            at += 2 if marker in BARE else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None
