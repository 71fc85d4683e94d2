"""The options of `decant export` about quantization."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from exporter.cli.common_options import given
from exporter.cli.sizes import parse_size
from exporter.core.ggml_types import AUTO, parse_type
from exporter.quantize.imatrix import read_imatrix
from exporter.quantize.size_budget import SizeBudget
from exporter.quantize.type_recipe import Recipe, parse_rule, read_recipe

HERE = "here"  # --fit without a size
ROOM = "runtime.engine.weights_room"
"""The module that knows how much memory a context takes; the exporter names runtime in strings."""

OPTIONS = (
    click.option(
        "--imatrix", type=click.Path(path_type=Path), metavar="FILE",
        help="An importance matrix of this model, as llama-imatrix makes it.",
    ),
    click.option(
        "--calibrate", type=click.Path(path_type=Path), metavar="TEXT",
        help="Make the importance matrix from this text file; it is kept for the next time.",
    ),
    click.option(
        "--no-calibrate", is_flag=True, help="Of -q auto: choose types without a matrix.",
    ),
    click.option(
        "--tensor-type", "rules", multiple=True, metavar="PATTERN=TYPE",
        help="Type of the tensors with such names, e.g. ffn_down=q6_k; give it again for more.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
    click.option("--pure", is_flag=True, help="One type for all tensors, no mixture."),
    click.option(
        "--bpw", type=click.FloatRange(1, 32), metavar="BITS",
        help="Size of -q auto: bits per weight, e.g. 4.8.",
    ),
    click.option("--size", metavar="SIZE", help="Size of -q auto: that of the file, e.g. 4.5GB."),
    click.option(
        "--fit", is_flag=False, flag_value=HERE, metavar="[SIZE]",
        help="Size of -q auto: what the free memory holds here, or SIZE of it elsewhere.",
    ),
    click.option(
        "--ctx", "context", type=click.IntRange(1), metavar="TOKENS",
        help="Of --fit: the context beside the weights; default: as `decant chat` gives.",
    ),
    click.option(
        "--recipe", "recipe_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Types as in FILE: another GGUF, or lines PATTERN=TYPE.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TypedRecipe:
    """The values of OPTIONS as click passes them, under their parameters' names."""

    imatrix: Path | None
    calibrate: Path | None
    rules: tuple[str, ...]
    output_tensor_type: str | None
    token_embedding_type: str | None
    pure: bool
    bpw: float | None
    size: str | None
    fit: str | None
    context: int | None
    recipe_file: Path | None
    no_calibrate: bool

    def recipe(self) -> Recipe:
        """Read the files that are named. Raises UsageError for options that exclude each other."""
        if self.imatrix and self.calibrate:
            raise click.UsageError("--imatrix and --calibrate give the same thing: choose one")
        output, embedding = self.output_tensor_type, self.token_embedding_type
        return Recipe(
            calibrate=self.calibrate,
            imatrix=read_imatrix(self.imatrix) if self.imatrix else None,
            tensor_types=tuple(map(parse_rule, self.rules)),
            output_type=parse_type(output) if output else None,
            embedding_type=parse_type(embedding) if embedding else None,
            pure=self.pure,
            listed_types=read_recipe(self.recipe_file) if self.recipe_file else (),
            calibrates=not self.no_calibrate,
            budget=parse_budget(self.bpw, self.size, self.fit, self.context),
        )


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to `command`, as the single argument `recipe`.

    Raises UsageError for options that exclude each other.
    """

    @functools.wraps(command)
    def with_recipe(**options: Any) -> None:  # the command's, and these
        typed = TypedRecipe(**{one.name: options.pop(one.name) for one in fields(TypedRecipe)})
        recipe = typed.recipe()
        if recipe.budget or recipe.listed_types:
            options["quants"] = quants_with_auto(options["quants"])
        if recipe.pure and AUTO in map(str.upper, options["quants"]):
            raise click.UsageError("--pure gives all tensors one type, and -q auto each its own")
        command(recipe=recipe, **options)

    for option in reversed(OPTIONS):
        option(with_recipe)
    return with_recipe


def parse_budget(
    bpw: float | None, size: str | None, fit: str | None, context: int | None
) -> SizeBudget | None:
    """The size that one of the options sets. Raises UsageError for more than one of them."""
    given_ones = [
        name
        for name, value in (("--bpw", bpw), ("--size", size), ("--fit", fit))
        if value is not None  # an empty text, from an unset shell variable, is refused below
    ]
    if len(given_ones) > 1:
        raise click.UsageError(f"{' and '.join(given_ones)} all set the size: choose one")
    if context and fit is None:
        raise click.UsageError("--ctx is the context beside the weights of --fit: add --fit")
    if fit is not None:
        nbytes = None if fit == HERE else parse_size("--fit", fit)
        room = importlib.import_module(ROOM).weights_room
        return SizeBudget(room=functools.partial(room, nbytes=nbytes, context=context))
    if size is not None:
        return SizeBudget(nbytes=parse_size("--size", size))
    return SizeBudget(bits=bpw) if bpw else None


def quants_with_auto(quants: tuple[str, ...]) -> tuple[str, ...]:
    """The quantizations if an option for AUTO is given: AUTO by default. Raises UsageError without
    AUTO.
    """
    if not given("quants"):
        return (AUTO,)
    if AUTO not in map(str.upper, quants):
        raise click.UsageError(
            f"--bpw, --size, --fit and --recipe are for -q auto: leave out -q {quants[0]},"
            " or add -q auto"
        )
    return quants
