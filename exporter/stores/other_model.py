"""A model in another program's store, as decant reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from exporter.core.errors import ModelError
from exporter.core.near_names import near_names

Program: TypeAlias = Literal["ollama", "lmstudio", "hf"]
TITLES: dict[Program, str] = {
    "ollama": "Ollama", "lmstudio": "LM Studio", "hf": "the hub's cache",
}  # fmt: skip
"""The programs, as messages call them."""
SHOWN = 200  # characters of a name in an error
FEW = 8  # names shown in a hint


@dataclass(frozen=True, slots=True)
class OtherFile:
    """A file of another program's."""

    path: Path
    sha256: str = ""
    """Its hash in hexadecimal digits, if the store states it."""


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model in another program's store."""

    program: Program
    name: str
    """The name to type."""
    nbytes: int = 0
    files: tuple[OtherFile, ...] = ()
    """The GGUF, or all files of a split one; empty if there is none."""
    stem: str = ""
    """The name proposed for decant's store, which may end with a quantization."""
    projectors: tuple[OtherFile, ...] = ()
    adapters: tuple[OtherFile, ...] = ()
    problem: str = ""
    """The reason that it cannot be imported; empty if it can."""
    instead: str = ""
    """The command to run instead if it cannot be imported."""


def no_such_model(
    program: Program, name: str, known: Sequence[str], otherwise: str, *, at: str = ""
) -> ModelError:
    """The error for a name that a store does not have, with the nearest names as the hint.

    otherwise: the hint for an empty store; at: its place.
    """
    shown = near_names(name, known, most=3, alike=0.5) or list(known[:FEW])
    return ModelError(
        f"{TITLES[program]} has no model {name[:SHOWN]!r}{f' in `{at}`' if at else ''}",
        hint=f"it has {', '.join(shown)}; `decant list --all` shows all" if known else otherwise,
    )


def one_of(
    program: Program,
    name: str,
    models: Sequence[OtherModel],
    names: Callable[[OtherModel], set[str]],
) -> OtherModel | None:
    """The model of that name, None without one. Raises ModelError if several have it.

    names: all names by which a model may be called, beside its own.
    """
    if exact := [model for model in models if model.name == name]:
        return exact[0]
    found = [model for model in models if name in names(model)]
    if len(found) > 1:
        raise ModelError(
            f"{name!r} is the name of {len(found)} models of {TITLES[program]}",
            hint=f"name one: {', '.join(model.name for model in found[:FEW])}",
        )
    return found[0] if found else None
