"""A metric that is a Python function of the user's: `file.py:function`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.core.errors import InputError
from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric
from runtime.evaluation.outcome import Outcome

Function = Callable[[str, list[str], dict[str, Any]], Any]
"""It may return anything; a result that is neither a number nor None is an error."""


def is_own(name: str) -> bool:
    """Whether the name of a metric is one of a user's function."""
    return ".py:" in name


def own_metric(name: str) -> Metric:
    """The mean of a user's function over the items; an item with None is left out.

    The function is called with the answer, the references and the item's fields. Higher is better,
    unless the function has an attribute `higher_is_better` that is False or None; it is binary if
    its annotation says that it returns bool. Raises InputError.
    """
    file, _, function_name = name.rpartition(":")
    function = _function(Path(file), function_name)
    direction = getattr(function, "higher_is_better", True)
    returned = getattr(function, "__annotations__", {}).get("return")

    def value(item: Item, outcome: Outcome) -> float | None:
        """The function's result for an item. Raises InputError."""
        if outcome.answer is None:
            return None
        try:
            found = function(outcome.answer, list(item.references), asdict(item))
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise InputError(
                f"{name} failed on item {item.id}: {type(error).__name__}: {error}",
                hint="return None for an item that it cannot measure",
            ) from error
        return None if found is None else _number(found, name, item)

    return mean_metric(
        f"{Path(file).name}:{function_name}",
        function_name.replace("_", " "),
        "answer",
        value,
        higher_is_better=direction if direction is None else bool(direction),
        is_binary=returned in (bool, "bool"),
    )


def _function(file: Path, name: str) -> Function:
    if not file.is_file():
        raise InputError(f"{file} does not exist", hint="--metric FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"decant_metric_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise InputError(
            f"{file} cannot be imported: {type(error).__name__}: {error}",
            hint=f"try it: python {file}",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, one in vars(module).items() if callable(one) and key[0] != "_"]
        raise InputError(
            f"{file} has no function {name!r}",
            hint=f"it has {', '.join(own)}" if own else "def NAME(answer, references, item): ...",
        )
    return function  # type: ignore[no-any-return]


def _number(found: object, name: str, item: Item) -> float:
    """A function's result as a finite number; numpy's numbers are numbers too."""
    try:
        value = math.nan if isinstance(found, str) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{name} gave {found!r:.100} for item {item.id}, which is no finite number",
            hint="return a number, a bool, or None to leave the item out",
        )
    return value
