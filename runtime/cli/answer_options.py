"""The options of `decant chat` for the answers, the model and the first question's files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click


class NumberRange(click.FloatRange):
    """A range of numbers; click's admits `nan`, which is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Raises click's error for any other text."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return found


def without_empty(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """The texts to stop at. Raises click's error for an empty one, at which all would end."""
    if "" in texts:
        raise click.BadParameter("an empty text is everywhere: name another", ctx, param)
    return texts


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPTIONS = (
    click.option("--top-p", type=NumberRange(0, 1), help="The likeliest tokens up to this."),
    click.option("--top-k", type=click.IntRange(0), help="So many likeliest tokens; 0: all."),
    click.option("--min-p", type=NumberRange(0, 1), help="Least share of the likeliest one."),
    click.option(
        "--repeat-penalty", type=NumberRange(0.001, 1000), help="Above 1: fewer repetitions."
    ),
    click.option(
        "--stop", multiple=True, metavar="TEXT", callback=without_empty,
        help="Stop at TEXT. Repeatable.",
    ),
    click.option("--json-schema", type=FILE, metavar="FILE", help="Answer in JSON of this schema."),
    click.option(
        "--grammar-file", "grammar", type=FILE, metavar="FILE", help="Keep to this GBNF grammar."
    ),
    click.option(
        "--think/--no-think", "thinking", default=None,
        help="Whether to think first; default: as the template does.",
    ),
    click.option(
        "--file", "files", multiple=True, type=FILE, metavar="FILE",
        help="A text or an image that goes with the first question. Repeatable.",
    ),
    click.option(
        "-ngl", "--gpu-layers", type=click.IntRange(0, 10_000),
        help="Layers on the GPU; default: as many as fit.",
    ),
)  # fmt: skip
spec_option = click.option(
    "--spec", default="off", metavar="off|auto|ngram|mtp|MODEL",
    help="How to guess tokens for the model to check: from the text, by its own layers, or by a"
    " small MODEL. The answers stay the same. Default: off.",
)  # fmt: skip
Command = TypeVar("Command", bound=Callable[..., Any])


def answer_options(command: Command) -> Command:
    """Add these options to `command`, under the names of chat_options.Options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
