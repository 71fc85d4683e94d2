"""docs/cli.md: every command's --help. `python -m exporter.cli.reference` prints it."""

from __future__ import annotations

import click

from exporter.cli.app import COMMANDS, root

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


if __name__ == "__main__":
    click.echo(reference(), nl=False)
