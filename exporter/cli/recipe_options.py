"""The options of `decant export` about quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from exporter.core.ggml_types import parse_type
from exporter.quantize.imatrix import read_imatrix
from exporter.quantize.recipe import Recipe, parse_rule

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
        "--tensor-type", "rules", multiple=True, metavar="PATTERN=TYPE",
        help="Type of the tensors with such names, e.g. ffn_down=q6_k; give it again for more.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
    click.option("--pure", is_flag=True, help="One type for all tensors, no mixture."),
)  # fmt: skip


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to `command`, as the single argument `recipe`.

    Raises UsageError for options that exclude each other.
    """

    @functools.wraps(command)
    def with_recipe(
        *,
        imatrix: Path | None,
        calibrate: Path | None,
        rules: tuple[str, ...],
        output_tensor_type: str | None,
        token_embedding_type: str | None,
        pure: bool,
        **others: Any,  # the command's own
    ) -> None:
        if imatrix and calibrate:
            raise click.UsageError("--imatrix and --calibrate give the same thing: choose one")
        recipe = Recipe(
            calibrate=calibrate,
            imatrix=read_imatrix(imatrix) if imatrix else None,
            tensor_types=tuple(map(parse_rule, rules)),
            output_type=parse_type(output_tensor_type) if output_tensor_type else None,
            embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
            pure=pure,
        )
        command(recipe=recipe, **others)

    for option in reversed(OPTIONS):
        option(with_recipe)
    return with_recipe
