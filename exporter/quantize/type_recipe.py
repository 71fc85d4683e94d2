"""llama-quantize's options for types beyond a quantization's default mixture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import InputError, UnsupportedError
from exporter.core.ggml_types import AUTO, FLOATS, GGMLType, parse_type
from exporter.core.gguf import MAGIC, read_gguf
from exporter.core.near_names import near_files
from exporter.quantize.imatrix import ImportanceMatrix, keys
from exporter.quantize.size_budget import SizeBudget

if TYPE_CHECKING:
    from exporter.convert.gguf_layout import Slot

EXAMPLE = "write it as PATTERN=TYPE, such as ffn_down=q6_k"


@dataclass(frozen=True, slots=True)
class TypeRule:
    """A type for all tensors whose name matches a pattern."""

    pattern: str
    """A regular expression that is searched in the name; the first matching rule applies."""
    type: GGMLType

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.name.lower()}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """llama-quantize's options, under its names."""

    imatrix: ImportanceMatrix | None = None
    calibrate: Path | None = None
    """A text from which to make the importance matrix."""
    tensor_types: tuple[TypeRule, ...] = ()
    output_type: GGMLType | None = None
    """Type of output.weight alone."""
    embedding_type: GGMLType | None = None
    """Type of the token embeddings."""
    pure: bool = False
    """One type for all tensors, without the mixture."""
    listed_types: tuple[TypeRule, ...] = ()
    """The rules of a recipe's file, which apply after `tensor_types`."""
    calibrates: bool = True
    """Whether AUTO makes an importance matrix if none is given."""
    budget: SizeBudget | None = None
    """The size for which the types of AUTO are chosen."""

    def overrides(self) -> list[str]:
        """The options that change types; none of them names a file."""
        return [
            *(["--pure"] if self.pure else []),
            *(["--output-tensor-type", self.output_type.name] if self.output_type else []),
            *(["--token-embedding-type", self.embedding_type.name] if self.embedding_type else []),
            *(part for rule in self.tensor_types for part in ("--tensor-type", str(rule))),
        ]

    def arguments(self) -> list[str]:
        """The arguments before llama-quantize's files."""
        matrix = ["--imatrix", str(self.imatrix.path.absolute())] if self.imatrix else []
        listed = (part for rule in self.listed_types for part in ("--tensor-type", str(rule)))
        return [*matrix, *self.overrides(), *listed]

    def keys(self, quant: str) -> dict[str, str | int]:
        """The metadata about a file's quantization."""
        if quant in FLOATS:
            return {"decant.quant": quant}
        metadata = keys(self.imatrix) if self.imatrix else {}
        size = self.budget.arguments() if self.budget and quant == AUTO else []
        return metadata | {"decant.quant": " ".join([quant, *size, *self.overrides()])}

    @property
    def by_name(self) -> dict[str, GGMLType | None]:
        """The types of the two tensors that have a separate option; None if it is not given."""
        return {"output.weight": self.output_type, "token_embd.weight": self.embedding_type}

    def names(self, name: str) -> bool:
        """Whether one of the user's options decides the tensor's type."""
        matching = (re.search(rule.pattern, name) for rule in self.tensor_types)
        return bool(self.by_name.get(name)) or any(matching)

    def fixes(self, name: str) -> bool:
        """Whether one of the user's options or a recipe's rule decides the tensor's type."""
        listed = (re.search(rule.pattern, name) for rule in self.listed_types)
        return self.names(name) or any(listed)


PLAIN = Recipe()


def parse_rule(text: str) -> TypeRule:
    """Parse PATTERN=TYPE. Raises InputError for another form, UnsupportedError for a wrong type."""
    pattern, equals, kind = text.partition("=")  # llama-quantize lowers the pattern, too
    pattern = pattern.lower()
    if not (pattern and equals and kind):
        raise InputError(f"{text!r} is not a rule for tensors' types", hint=EXAMPLE)
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"the pattern {pattern!r} is not a regular expression: {error}", hint=EXAMPLE
        ) from error
    return TypeRule(pattern, parse_type(kind))


RECIPE_KEY = "decant.recipe"
"""Metadata key: the chosen types, one PATTERN=TYPE a line, as --tensor-type-file takes them."""


def recipe_text(types: Mapping[str, GGMLType]) -> str:
    """The types of tensors in the form of RECIPE_KEY."""
    return "\n".join(f"^{re.escape(name)}$={kind.name.lower()}" for name, kind in types.items())


def read_recipe(path: Path) -> tuple[TypeRule, ...]:
    """The rules of a text such as llama-quantize's --tensor-type-file, or those of a GGUF.

    A GGUF without a recipe gives the types of its quantized tensors. Raises InputError for an empty
    text, and as `parse_rule` does.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        text = None if is_gguf else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the recipe `{path}`: {getattr(error, 'strerror', None) or error}",
            hint="`decant inspect MODEL --recipe > FILE` writes one",
        ) from error
    if text is None:
        held = read_gguf(path)
        quantized = {t.name: t.type for t in held.tensors if t.type.name not in FLOATS}
        text = held.text(RECIPE_KEY) or recipe_text(quantized)
    rules = tuple(map(parse_rule, text.split()))
    if not rules:
        raise InputError(f"the recipe `{path}` names no tensor", hint=EXAMPLE)
    return rules


def check_recipe(recipe: Recipe, quants: Sequence[str]) -> None:
    """Raise UnsupportedError if a quantization would ignore the given options."""
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


def no_text(text: Path) -> InputError:
    return InputError(
        f"there is no text `{text}` to calibrate on", hint=near_files(text, "is the path right?")
    )


def check_rules(recipe: Recipe, types: dict[str, GGMLType], slots: Iterable[Slot]) -> None:
    """Raise InputError if a rule matches no tensor, or none that can have its type.

    types: llama-quantize's choice with the rules applied.
    """
    shapes = {slot.name: slot.shape for slot in slots}
    for rule in (*recipe.tensor_types, *recipe.listed_types):
        is_listed = rule not in recipe.tensor_types
        option = "--recipe" if is_listed else "--tensor-type"
        matching = [name for name in types if re.search(rule.pattern, name)]
        if not matching:
            raise InputError(
                f"`{option} {rule}` names no tensor of this model",
                hint=f"`decant inspect MODEL --tensors` lists them, such as {next(iter(types))}",
            )
        if is_listed and any(recipe.names(name) for name in matching):
            continue  # the user's own rule goes before
        if not any(types[name] == rule.type for name in matching):
            raise InputError(
                f"`{option} {rule}` has no effect: {matching[0]}"
                f" {list(shapes[matching[0]])} stays {types[matching[0]].name}",
                hint=f"an earlier rule may name it, or its rows are not a multiple of"
                f" {rule.type.block}, or llama.cpp never quantizes it",
            )
    for name, kind in recipe.by_name.items():
        if kind and name in types and types[name] != kind:
            raise InputError(
                f"`{name}` {list(shapes[name])} stays {types[name].name} and is not {kind.name}",
                hint="llama.cpp does not quantize it in this model",
            )
        if kind and name in types and shapes[name][-1] % kind.block:
            raise InputError(
                f"`{name}` cannot be {kind.name}: its rows have {shapes[name][-1]} values,"
                f" not a multiple of {kind.block}",
                hint="choose another type for it",
            )
