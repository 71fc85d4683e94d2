"""Copies of GGUFs in which a text is replaced."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny import CHAT_TEMPLATE


def edited(source: Path, output: Path, old: bytes, new: bytes) -> Path:
    """A copy of a GGUF in which one text is replaced by another of the same length."""
    assert len(old) == len(new)
    content = source.read_bytes()
    assert content.count(old) == 1
    output.write_bytes(content.replace(old, new))
    return output


def with_template(source: Path, output: Path, template: str) -> Path:
    return edited(
        source, output, CHAT_TEMPLATE.encode(), template.encode().ljust(len(CHAT_TEMPLATE))
    )
