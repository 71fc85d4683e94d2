"""Changes in the header of a GGUF, in place."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from exporter.core.gguf import ARRAY, SCALARS, STRING


def places(path: Path) -> dict[str, tuple[int, int]]:
    """The type and the offset of every key's value."""
    raw = path.read_bytes()
    (count,) = struct.unpack_from("<Q", raw, 16)
    at, found = 24, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, at)
        key = raw[at + 8 : at + 8 + length].decode()
        (kind,) = struct.unpack_from("<I", raw, at + 8 + length)
        at += 12 + length
        found[key] = kind, at
        at = end(raw, kind, at)
    return found


def end(raw: bytes, kind: int, at: int) -> int:
    """The offset of the end of a value."""
    if kind == STRING:
        return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
    if kind == ARRAY:
        inner, count = struct.unpack_from("<IQ", raw, at)
        at += 12
        for _ in range(count):
            at = end(raw, inner, at)
        return at
    return at + struct.calcsize(SCALARS[kind])


def item(path: Path, key: str, number: int) -> tuple[int, int]:
    """The offsets of the beginning and the end of an array's item."""
    raw = path.read_bytes()
    _, at = places(path)[key]
    inner, _ = struct.unpack_from("<IQ", raw, at)
    at += 12
    for _ in range(number):
        at = end(raw, inner, at)
    return at, end(raw, inner, at)


def write(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def set_number(path: Path, key: str, value: Any) -> None:
    kind, at = places(path)[key]
    write(path, at, struct.pack(SCALARS[kind], value))


def set_text(path: Path, key: str, value: str) -> None:
    """Replace a text by another of the same length."""
    _, at = places(path)[key]
    (length,) = struct.unpack_from("<Q", path.read_bytes(), at)
    assert length == len(value.encode())
    write(path, at + 8, value.encode())


def swap_items(path: Path, key: str, one: int, other: int) -> None:
    """Exchange two items of the same length."""
    raw = path.read_bytes()
    (a, a_end), (b, b_end) = item(path, key, one), item(path, key, other)
    assert a_end - a == b_end - b
    write(path, a, raw[b:b_end])
    write(path, b, raw[a:a_end])


def set_item(path: Path, key: str, number: int, value: float, code: str) -> None:
    write(path, item(path, key, number)[0], struct.pack(code, value))
