"""How large a picture becomes when it is decoded, read off its first bytes.

A few kilobytes may say that they are a picture of gigabytes, which an engine would make room for.
"""

from __future__ import annotations

import base64
import binascii
import struct

HEAD = 1 << 20  # bytes of a picture in which its size stands; a JPEG's preview comes before it
QUAD = 4  # characters of base64 that are three bytes
SIZES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""JPEG's markers of a frame, in which its size stands."""
BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG's markers that nothing belongs to."""


def pixels_of(packed: str) -> int | None:
    """The pixels of a picture in base64; None for what is no picture of a known kind."""
    start = "".join(packed[: HEAD * 2].split())[:HEAD]
    try:
        raw = base64.b64decode(start[: len(start) // QUAD * QUAD] or start)
    except (binascii.Error, ValueError):
        return None
    return pixels(raw)


def pixels(raw: bytes) -> int | None:
    """Width times height, of the beginning of a PNG, GIF, BMP, WebP or JPEG."""
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
    """Of all three of its forms: https://developers.google.com/speed/webp/docs/riff_container."""
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
    """Of the first frame, past all that stands before it."""
    at = 2
    while raw[at] == 0xFF:  # noqa: PLR2004 - every marker begins so
        marker = raw[at + 1]
        if marker in SIZES:
            return unpacked(">HH", raw, at + 5)
        if marker == 0xFF:  # noqa: PLR2004 - as many as the writer liked
            at += 1
        else:
            at += 2 if marker in BARE else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None
