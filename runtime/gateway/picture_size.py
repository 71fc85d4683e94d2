"""Reads the size of a decoded picture from its first bytes.

A file of a few kilobytes may claim a picture of gigabytes, which an engine would allocate.
"""

from __future__ import annotations

import struct

SIZES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""JPEG's start-of-frame markers (SOF), whose segment holds the size."""
OS2_HEADER = struct.pack("<I", 12)
"""The size of a BMP's header in its oldest form, which has 16 bits for each side."""
BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG's markers without a segment."""


def pixels(raw: bytes) -> int | None:
    """Width times height, from the beginning of a PNG, GIF, BMP, WebP or JPEG."""
    try:
        size = size_of(raw)
    except (struct.error, IndexError):
        return None
    return abs(size[0] * size[1]) if size else None


def size_of(raw: bytes) -> tuple[int, int] | None:
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return unpacked(">II", raw, 16) if raw[12:16] == b"IHDR" else None
    if raw.startswith((b"GIF87a", b"GIF89a")):
        return unpacked("<HH", raw, 6)
    if raw.startswith(b"BM"):
        return unpacked("<HH" if raw[14:18] == OS2_HEADER else "<ii", raw, 18)
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return webp(raw)
    return jpeg(raw) if raw.startswith(b"\xff\xd8") else None


def unpacked(code: str, raw: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(code, raw, at)
    return int(first), int(second)


def webp(raw: bytes) -> tuple[int, int] | None:
    """The larger of a canvas and its first frame.

    Their forms: https://developers.google.com/speed/webp/docs/riff_container
    """
    at, canvas = 12, None
    while at + 8 <= len(raw):
        name, size = raw[at : at + 4], int(struct.unpack_from("<I", raw, at + 4)[0])
        if (found := webp_sides(name, raw, at)) is not None:
            canvas = max(found, canvas or found, key=lambda one: one[0] * one[1])
            if name != b"VP8X":
                break
        at += 8 + size + size % 2
    return canvas


def webp_sides(name: bytes, raw: bytes, at: int) -> tuple[int, int] | None:
    """Width and height in the chunk at an offset; None for other chunks."""
    match name:
        case b"VP8X":
            width, height = (int.from_bytes(raw[at + x : at + x + 3], "little") for x in (12, 15))
            return width + 1, height + 1
        case b"VP8L":
            bits = int.from_bytes(raw[at + 9 : at + 13], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = unpacked("<HH", raw, at + 14)
            return width & 0x3FFF, height & 0x3FFF
        case _:
            return None


def jpeg(raw: bytes) -> tuple[int, int] | None:
    """Width and height of the first frame; skips the segments and the padding before it."""
    at = 2
    while True:
        while raw[at] != 0xFF or raw[at + 1] == 0xFF:  # noqa: PLR2004 - padding before a marker
            at += 1
        marker = raw[at + 1]
        if marker in SIZES:
            return unpacked(">HH", raw, at + 5)
        at += 2 if marker in BARE else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
