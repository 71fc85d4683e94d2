"""YAML in files beside models and data: README's front matter, and trainers' settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
FENCED = re.compile(r"^```ya?ml[ \t]*\r?\n(.*?)^```", re.DOTALL | re.MULTILINE)
LARGEST = 4 << 20  # bytes of a file of settings


def readme_settings(text: str) -> Mapping[str, Any]:
    """The front matter of a README; empty if it has none that can be read."""
    found = FRONT.match(text)
    value = parse_yaml(found[1]) if found else None
    return value if isinstance(value, Mapping) else {}


def fenced_settings(text: str) -> Iterator[Any]:
    """Each block of YAML in a README, such as the settings that axolotl writes there."""
    yield from (parse_yaml(found[1]) for found in FENCED.finditer(text))


def parse_yaml(text: str) -> Any:  # whatever YAML holds
    """The value of a YAML text; None if it is malformed."""
    yaml = import_module("yaml")  # huggingface_hub needs it, too
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError):
        return None


def parse_json(text: str) -> Any:  # whatever JSON holds
    """The value of a JSON text; None if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def text_of_file(path: Path) -> str:
    """A file's text; empty if it cannot be read or is no file of settings."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
