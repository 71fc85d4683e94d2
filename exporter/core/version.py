"""Versions of decant and of its packages."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "decant-llm"
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
VERSION = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)


@cache
def version(package: str) -> str:
    """The version of a package when it was first asked for; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def own_version(project: Path = PROJECT) -> str:
    """The version of decant, from pyproject.toml in a checkout that is not installed."""
    if installed := version(PACKAGE):
        return installed
    try:
        found = VERSION.search(project.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


@cache
def code_hash(folder: Path = PROJECT.parent / "exporter") -> str:
    """A hash of decant's Python files, for what is kept on disk only as long as they stay."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return found.hexdigest()
