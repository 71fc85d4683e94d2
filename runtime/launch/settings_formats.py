"""The formats of tools' settings files: puts decant's values into one, and takes them out again.

`merged` keeps all other values of the file. `undone` is for a file that was changed after decant
wrote it: it takes out the values that are still decant's, puts back those from before, and keeps
the changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
LINE = re.compile(r"^([\w-]+) *:")
"""A key at the left margin of a YAML file."""


class SettingsFormat(Protocol):
    """One format of settings files; texts without a value are empty."""

    def merged(self, text: str, ours: Json) -> str:
        """The file's text with our values. Raises ValueError if the text cannot be read."""

    def undone(self, text: str, ours: Json, before: str) -> str:
        """The file's text without our values. Raises ValueError if a text cannot be read."""


class JsonFile:
    """An object; ours is merged into it."""

    def merged(self, text: str, ours: Json) -> str:
        return written(merge(read_object(text), ours))

    def undone(self, text: str, ours: Json, before: str) -> str:
        rest = undo(read_object(text), ours, read_object(before))
        return written(rest) if rest or before else ""


class NamedEntries:
    """A list of objects with a `name` each; ours is one of them."""

    def merged(self, text: str, ours: Json) -> str:
        others = [one for one in read_list(text) if not is_named(one, ours["name"])]
        return written([*others, ours])

    def undone(self, text: str, ours: Json, before: str) -> str:
        rest = [one for one in read_list(text) if one != ours]
        if not any(is_named(one, ours["name"]) for one in rest):
            rest += [one for one in read_list(before) if is_named(one, ours["name"])]
        return written(rest) if rest or before else ""


class YamlLines:
    """A YAML file with plain keys at its left margin; ours maps some of them to texts."""

    def merged(self, text: str, ours: Json) -> str:
        others = [block for key, block in blocks(text) if key not in ours]
        return joined([*others, *(line_of(key, value) for key, value in ours.items())])

    def undone(self, text: str, ours: Json, before: str) -> str:
        lines = {line_of(key, value) for key, value in ours.items()}
        rest = [(key, block) for key, block in blocks(text) if block.rstrip("\n") not in lines]
        keys = {key for key, _ in rest}
        old = [block for key, block in blocks(before) if key in ours and key not in keys]
        return joined([*(block for _, block in rest), *old])


class OwnToml:
    """A TOML file of decant's alone; a file of that name is replaced whole."""

    def merged(self, text: str, ours: Json) -> str:
        del text
        return "\n".join(toml_lines(ours)) + "\n"

    def undone(self, text: str, ours: Json, before: str) -> str:
        """The text as it is. Raises ValueError if there was another file before."""
        del ours
        if before:
            raise ValueError("it replaced a file and was then changed")
        return text


def read_object(text: str) -> Json:
    """The object in a JSON text; an empty text has none. Raises ValueError."""
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004
    return found


def read_list(text: str) -> list[Any]:
    """The list in a JSON text; an empty text has none. Raises ValueError."""
    found = json.loads(text) if text.strip() else []
    if not isinstance(found, list):
        raise ValueError("it holds no JSON list")  # noqa: TRY004
    return found


def written(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def is_named(entry: object, name: str) -> bool:
    return isinstance(entry, dict) and entry.get("name") == name


def merge(into: Json, ours: Json) -> Json:
    """The object with our values in it, at any depth."""
    found = dict(into)
    for key, value in ours.items():
        inside = found.get(key)
        if isinstance(value, dict) and isinstance(inside, dict):
            found[key] = merge(inside, value)
        else:
            found[key] = value
    return found


def undo(now: Json, ours: Json, before: Mapping[str, Any]) -> Json:
    """The object with the values from before in place of ours; changed values stay."""
    found = dict(now)
    for key, value in ours.items():
        if key not in found:
            continue
        old = before.get(key)
        if isinstance(value, dict) and isinstance(found[key], dict):
            found[key] = undo(found[key], value, old if isinstance(old, dict) else {})
            if not found[key] and key not in before:
                del found[key]
        elif found[key] == value and key in before:
            found[key] = old
        elif found[key] == value:
            del found[key]
    return found


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The keys of a YAML file with their lines; other lines have an empty key."""
    key, lines = "", list[str]()
    for line in text.splitlines(keepends=True):
        found = LINE.match(line)
        if found or not line.startswith((" ", "\t")):
            yield from [(key, "".join(lines))] if lines else []
            key, lines = found[1] if found else "", []
        lines.append(line)
    yield from [(key, "".join(lines))] if lines else []


def line_of(key: str, value: str) -> str:
    return f"{key}: {json.dumps(value)}"  # a JSON text is a YAML text, too


def joined(parts: list[str]) -> str:
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts)


def toml_lines(table: Json, name: str = "") -> Iterator[str]:
    """The lines of a TOML table of texts, numbers and tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if name and plain:
        yield from ("", f"[{name}]")
    for key, value in plain.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from toml_lines(value, f"{name}.{key}" if name else key)
