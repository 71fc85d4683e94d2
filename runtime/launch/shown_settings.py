"""A tool's settings as text: what to paste into a shell or a file to start the tool by hand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from runtime.launch.coding_tools import KEY_VARIABLE, CodingTool, Endpoint


def shell_lines(tool: CodingTool, endpoint: Endpoint, arguments: tuple[str, ...] = ()) -> str:
    """The variables and the command line of a tool; a key is shown as its variable's name."""
    lines = [
        f"export {name}={quoted(value, endpoint)}" for name, value in tool.env(endpoint).items()
    ]
    words = [tool.program, *tool.arguments(endpoint), *arguments]
    return "\n".join([*lines, " ".join(quoted(word, endpoint) for word in words)])


def quoted(text: str, endpoint: Endpoint) -> str:
    """A word of a shell, in which the key is a variable."""
    if not endpoint.key or endpoint.key not in text:
        return shlex.quote(text)
    parts = [shlex.quote(part) if part else "" for part in text.split(endpoint.key)]
    return f'"${KEY_VARIABLE}"'.join(parts)


def file_text(tool: CodingTool, endpoint: Endpoint, path: Path) -> str:
    """The values for the tool's settings file, under the file's name."""
    text = tool.format.merged("", tool.content(endpoint))
    if endpoint.key:
        text = text.replace(json.dumps(endpoint.key), f'"YOUR KEY ({KEY_VARIABLE})"')
    return f"# {path}\n{text}"
