"""PNG pictures, written without a library for pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def png_head(width: int, height: int) -> bytes:
    """The first bytes of a picture of that size, without its pixels."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", width, height)


def make_png(path: Path, side: int = 64) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = b"".join(
        b"\0" + b"".join(bytes((x * 7 % 256, y * 5 % 256, 90)) for x in range(side))
        for y in range(side)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    whole = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    return path
