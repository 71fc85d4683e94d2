"""Hints for mistyped command lines."""

from __future__ import annotations

import re
from pathlib import Path

import click

from exporter.core.near_names import did_you_mean, near_files

CHOICE = re.compile(r"'(?P<value>.*?)' is not one of", re.DOTALL)
HABITS = (
    ("chat", "unexpected extra argument", "a question is an option: decant chat MODEL -p QUESTION"),
    ("launch", "--model", "the model is a word: decant launch TOOL MODEL"),
)
"""Words that other programs take: the command, a part of click's message, and the hint."""
NO_FILE = re.compile(r"'(?P<value>.*)' does not exist", re.DOTALL)


class UnknownCommandError(click.UsageError):
    """A command that decant does not have."""

    def __init__(self, name: str, advice: str, ctx: click.Context) -> None:
        super().__init__(f"there is no command {name!r}", ctx)
        self.advice = advice


def usage_hint(error: click.ClickException) -> str | None:
    """The hint for click's error: near values of an option, or where its help is."""
    if isinstance(error, UnknownCommandError):
        return error.advice
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return None
    help_ = f"`{error.ctx.command_path} --help` shows how to call it"
    for command, part, hint in HABITS:
        if error.ctx.info_name == command and part in error.message:
            return hint
    kind = error.param.type if isinstance(error, click.BadParameter) and error.param else None
    if isinstance(kind, click.Choice) and (found := CHOICE.search(error.message)):
        return did_you_mean(found["value"], map(str, kind.choices), help_)
    if isinstance(kind, click.Path) and (found := NO_FILE.search(error.message)):
        return near_files(Path(found["value"]), help_)
    return help_
