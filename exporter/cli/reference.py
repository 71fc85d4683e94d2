"""Writes documents from the commands: docs/cli.md, and the list of formats in docs/export.md.

`python -m exporter.cli.reference CHECKOUT` writes both.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from exporter.cli.app import COMMANDS, root
from exporter.cli.outputs.registry import formats_table

WIDTH = 100  # columns
OPENING = """\
# Commands

Written by `make docs` from each command's `--help`.

"""


def reference() -> str:
    """The help of `decant` and of each of its commands, as Markdown."""
    settings = root.context_settings
    with click.Context(root, info_name="decant", terminal_width=WIDTH, **settings) as above:
        parts = [section("decant", root.get_help(above))]
        for name in COMMANDS:
            command = root.get_command(above, name)
            assert command is not None
            with click.Context(command, above, name, terminal_width=WIDTH) as inside:
                parts.append(section(inside.command_path, command.get_help(inside)))
    return OPENING + "\n".join(parts)


def section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```\n{lines}\n```\n"


def with_formats(page: str) -> str:
    """The page with the current list of formats."""
    place = r"(<!-- formats: written by make docs -->\n).*?(<!-- /formats -->)"
    return re.sub(place, lambda at: at[1] + formats_table() + at[2], page, flags=re.DOTALL)


def write(checkout: Path) -> None:
    page = checkout / "docs" / "export.md"
    page.write_text(with_formats(page.read_text(encoding="utf-8")), encoding="utf-8")
    (checkout / "docs" / "cli.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
