"""Writes a benchmark's figures into its document, between two marks."""

from __future__ import annotations

from pathlib import Path


def write_part(document: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between the marks. Raises ValueError if one of them is missing."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"`{document}` lacks {marks[0]!r} or {marks[1]!r}")
    document.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
