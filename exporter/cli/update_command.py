"""The command `decant update-check`."""

from __future__ import annotations

import click

from exporter.core.version import PACKAGE, PROJECT, own_version, version


@click.command("update-check", epilog="Example: decant update-check")
def update_check() -> None:
    """Say which version this is, and how to get a newer one.

    decant never asks the network whether there is a newer version.
    """
    click.echo(f"decant {own_version()}")
    click.echo("decant never asks the network for new versions; to update:", err=True)
    for line in how():
        click.echo(f"  {line}", err=True)


def how() -> list[str]:
    """The commands that update this installation."""
    again = "decant setup   # builds llama.cpp again if the pinned version is another"
    if PROJECT.exists():
        return [f"cd {PROJECT.parent}", "git pull", "make setup"]
    extras = "[export]" if version("torch") else ""
    return [f"pip install --upgrade '{PACKAGE}{extras}'", again]
