"""The command `decant completion`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

VARIABLE = "_DECANT_COMPLETE"
"""The variable by which click's scripts ask `decant` for completions."""
INSTALL = {
    "bash": "decant completion bash > ~/.local/share/bash-completion/completions/decant",
    "zsh": "decant completion zsh > ~/.decant-completion.zsh; add to ~/.zshrc, below compinit:"
    " source ~/.decant-completion.zsh",
    "fish": "decant completion fish > ~/.config/fish/completions/decant.fish",
}
"""Shell -> the way to have completions in each new one."""


@click.command(
    "completion",
    epilog="Example: decant completion bash > ~/.local/share/bash-completion/completions/decant",
)
@click.argument("shell", type=click.Choice(tuple(INSTALL)), required=False)
def completion(shell: str | None) -> None:
    """Print the script that lets SHELL complete decant's commands, options and models.

    Without SHELL, it is the shell that $SHELL names. The script's first lines say where to save it;
    a new shell then completes with the Tab key.
    """
    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in INSTALL:
        raise click.UsageError(f"name the shell: {', '.join(INSTALL)}")
    click.echo(script(chosen))
    if sys.stdout.isatty():
        click.echo(f"save it: {INSTALL[chosen]}", err=True)


def script(shell: str) -> str:
    """The shell's script, with the way to install it in a comment."""
    from exporter.cli.app import root

    kind = get_completion_class(shell)
    assert kind is not None, shell
    made = kind(root, {}, "decant", VARIABLE)
    # click's own `source` asks bash for its version and prints a warning
    return f"# {INSTALL[shell]}\n{made.source_template % made.source_vars()}"
