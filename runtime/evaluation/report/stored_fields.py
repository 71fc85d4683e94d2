"""Reads dataclasses back from JSON, and checks each field's type on the way."""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from exporter.core.errors import InputError

T = TypeVar("T")


def plain(value: Any) -> Any:  # Any: whatever asdict gives
    """The value without figures that JSON lacks: infinities become texts, NaN becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)  # numpy's, which JSON does not take
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def restored(kind: type[T], value: object, place: str) -> T:
    """The dataclass whose `plain` fields these are.

    Unknown fields are left out, so that a later version's report can be read. Raises InputError for
    a value of another type.
    """
    found: T = build(kind, value, place)
    return found


def build(kind: Any, value: Any, place: str) -> Any:  # Any: a type of any field, and JSON
    """The value as an object of the type. Raises InputError for a value of another type."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return build_object(kind, value, place)
    if origin in (Union, types.UnionType):  # a type or None; no field has another union
        return None if value is None else build(inner[0], value, place)
    if is_kind(origin, Mapping) and isinstance(value, dict):
        return {name: build(inner[1], part, f"{place}.{name}") for name, part in value.items()}
    if is_kind(origin, Sequence) and isinstance(value, list):
        return tuple(build(inner[0], part, f"{place}[{i}]") for i, part in enumerate(value))
    found = number_of(value) if kind is float else value
    is_right = value in inner if origin is Literal else type(found) is kind
    if not is_right:
        raise InputError(f"`{place}` is {value!r:.80}, not of the type that reports have there")
    return found


def is_kind(origin: object, base: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, base)


def number_of(value: object) -> float | None:
    """The figure that `plain` wrote; None for a value that is no figure."""
    if value is None:
        return math.nan
    if value in ("inf", "-inf") or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


@cache
def hints_of(kind: type) -> dict[str, Any]:  # Any: types
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def build_object(kind: Any, value: object, place: str) -> Any:  # Any: a dataclass
    """The dataclass of an object's fields. Raises InputError where one is missing."""
    if not isinstance(value, dict):
        raise InputError(f"`{place}` is {value!r:.80}, not an object")
    hints = hints_of(kind)
    built = {}
    for one in fields(kind):
        if one.name in value:
            built[one.name] = build(hints[one.name], value[one.name], f"{place}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise InputError(f"`{place}` has no `{one.name}`")
    return kind(**built)
