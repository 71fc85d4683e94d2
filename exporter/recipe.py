"""How types are chosen beyond the quantization's own mixture, as llama-quantize is told it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import InputError, UnsupportedError
from exporter.core.types import FLOATS, GGMLType, parse_type
from exporter.imatrix import ImportanceMatrix, keys

if TYPE_CHECKING:
    from exporter.slots import Slot

EXAMPLE = "write it as PATTERN=TYPE, such as ffn_down=q6_k"


@dataclass(frozen=True, slots=True)
class TypeRule:
    """Tensors by a part of their name, and the type they are to have."""

    pattern: str
    """A regular expression, searched for in the name; the first rule that is found counts."""
    type: GGMLType

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.name}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """llama-quantize's options, under its own names."""

    imatrix: ImportanceMatrix | None = None
    calibrate: Path | None = None
    """A text to make the importance matrix from."""
    tensor_types: tuple[TypeRule, ...] = ()
    output_type: GGMLType | None = None
    """Of output.weight."""
    embedding_type: GGMLType | None = None
    """Of the token embeddings."""
    pure: bool = False
    """One type for all tensors, without the mixture."""

    def overrides(self) -> list[str]:
        """The arguments that change types; none of them names a file."""
        return [
            *(["--pure"] if self.pure else []),
            *(["--output-tensor-type", self.output_type.name] if self.output_type else []),
            *(["--token-embedding-type", self.embedding_type.name] if self.embedding_type else []),
            *(part for rule in self.tensor_types for part in ("--tensor-type", str(rule))),
        ]

    def arguments(self) -> list[str]:
        """What goes before llama-quantize's files."""
        matrix = ["--imatrix", str(self.imatrix.path.absolute())] if self.imatrix else []
        return [*matrix, *self.overrides()]

    def keys(self, quant: str) -> dict[str, str | int]:
        """What a file tells of how it was quantized."""
        if quant in FLOATS:
            return {"decant.quant": quant}
        told = keys(self.imatrix) if self.imatrix else {}
        return told | {"decant.quant": " ".join([quant, *self.overrides()])}


PLAIN = Recipe()


def parse_rule(text: str) -> TypeRule:
    """PATTERN=TYPE. Raises InputError when it is not that, UnsupportedError for a wrong type."""
    pattern, equals, kind = text.partition("=")  # as llama-quantize does, capitals too
    pattern = pattern.lower()
    if not (pattern and equals and kind):
        raise InputError(f"{text!r} is no rule for tensors' types", hint=EXAMPLE)
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"the pattern {pattern!r} is no regular expression: {error}", hint=EXAMPLE
        ) from error
    return TypeRule(pattern, parse_type(kind))


def check_recipe(recipe: Recipe, quants: Sequence[str]) -> None:
    """Raise UnsupportedError when a quantization would take no notice of what is asked for."""
    floats = [quant for quant in quants if quant in FLOATS]
    if floats and recipe.overrides():
        raise UnsupportedError(
            f"`{' '.join(recipe.overrides())}` has no meaning for {', '.join(floats)},"
            " which is not quantized",
            hint="export it by itself, without these options",
        )
    if len(floats) == len(quants) and (recipe.imatrix or recipe.calibrate):
        raise UnsupportedError(
            f"{', '.join(floats)} is not quantized and has no use for an importance matrix",
            hint="leave it out, or choose another -q",
        )


def check_rules(recipe: Recipe, types: dict[str, GGMLType], slots: Iterable[Slot]) -> None:
    """Raise InputError when a rule named no tensor, or none that could have its type.

    types: what llama-quantize chose, told of the rules.
    """
    shapes = {slot.name: slot.shape for slot in slots}
    for rule in recipe.tensor_types:
        matching = [name for name in types if re.search(rule.pattern, name)]
        if not matching:
            raise InputError(
                f"`--tensor-type {rule}` names no tensor of this model",
                hint=f"`decant inspect MODEL --tensors` lists them, such as {next(iter(types))}",
            )
        if not any(types[name] == rule.type for name in matching):
            raise InputError(
                f"`--tensor-type {rule}` has no effect: {matching[0]}"
                f" {list(shapes[matching[0]])} stays {types[matching[0]].name}",
                hint=f"an earlier rule may name it, or its rows are no multiple of"
                f" {rule.type.block}, or llama.cpp never quantizes it",
            )
    named = {"output.weight": recipe.output_type, "token_embd.weight": recipe.embedding_type}
    for name, kind in named.items():
        if kind and name in types and types[name] != kind:
            raise InputError(
                f"`{name}` {list(shapes[name])} stays {types[name].name} and is not {kind.name}",
                hint="llama.cpp does not quantize it in this model",
            )
        if kind and name in types and shapes[name][-1] % kind.block:
            raise InputError(
                f"`{name}` cannot be {kind.name}: its rows have {shapes[name][-1]} values,"
                f" no multiple of {kind.block}",
                hint="choose another type for it",
            )
