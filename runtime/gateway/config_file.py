"""`--config FILE.toml`: the options of `decant serve`, and models with their adapters."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from exporter.core.errors import InputError
from exporter.core.near_names import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT_MAX = 4096  # characters: the longest path that Linux takes
SHOWN = 60  # characters of a value in an error
MODEL_KEYS = ("path", "base", "adapters")


@dataclass(frozen=True, slots=True)
class ModelTable:
    """A table `[[model]]` of the file."""

    path: str
    adapters: tuple[str, ...]
    """In the form of --adapter: NAME=PATH[:SCALE]."""
    base: str | None


def load_config(
    ctx: click.Context, parameter: click.Parameter, path: Path | None
) -> tuple[ModelTable, ...]:
    """The file's models; its options become the command's defaults. Raises InputError."""
    del parameter
    if path is None:
        return ()
    found = read_toml(path)
    tables = found.pop("model", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"`{path}`: model is not a table", hint="write [[model]], then path = …")
    if (limits := found.pop("limits", None)) is not None:
        found.setdefault("limit", []).extend(limit_texts(path, limits))
    ctx.default_map = {**(ctx.default_map or {}), **options(ctx, path, found)}
    return tuple(model_table(path, table) for table in tables)


def limit_texts(path: Path, limits: object) -> list[str]:
    """The table `[limits]` in the form of --limit. Raises InputError."""
    if not isinstance(limits, dict) or not all(type(one) is int for one in limits.values()):
        raise InputError(
            f"`{path}`: [limits] needs a number for each name", hint="example: inputs = 4096"
        )
    return [f"{name}={number}" for name, number in limits.items()]


def read_toml(path: Path) -> dict[str, Any]:
    """The file's content. Raises InputError when it cannot be read as TOML."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read `{path}`: {error.strerror}", hint="is the path right?"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"`{path}` is not TOML: {error}", hint="correct it in the file") from error
    except RecursionError as error:
        raise InputError(
            f"`{path}` is nested too deeply", hint="no setting needs nested lists"
        ) from error
    return found


def options(ctx: click.Context, path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The settings by click's parameter names. Raises InputError for a wrong one."""
    known = {
        option.removeprefix("--").replace("-", "_"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and option != "--config"
    } | {"models": next(p for p in ctx.command.params if p.name == "models")}
    values = {}
    for name, value in found.items():
        parameter = known.get(name.replace("-", "_"))
        if parameter is None:
            advice = did_you_mean(name, known, f"the settings: {', '.join(sorted(known))}")
            raise InputError(f"`{path}`: there is no setting {name!r}", hint=advice)
        is_many = parameter.multiple if isinstance(parameter, click.Option) else True
        if is_many != isinstance(value, list):
            want = "a list" if is_many else "a single value"
            raise InputError(f"`{path}`: {name} must be {want}", hint="correct it in the file")
        for one in value if isinstance(value, list) else [value]:
            refuse_wrong_kind(f"`{path}`: {name}", one, parameter)
        assert parameter.name is not None
        values[parameter.name] = value
    return values


def refuse_wrong_kind(where: str, value: object, parameter: click.Parameter) -> None:
    """Raise InputError for a value that click would convert, or fail on."""
    kind: type = str
    want = "a text in quotes"
    if isinstance(parameter, click.Option) and parameter.is_flag:
        kind, want = bool, "true or false"
    elif isinstance(parameter.type, click.types.IntParamType):
        kind, want = int, "a whole number"
    if type(value) is not kind:
        raise InputError(
            f"{where} must be {want}, not {shown(value)}", hint="correct it in the file"
        )
    if isinstance(value, str):
        refuse_unreadable(where, value)


def refuse_unreadable(where: str, text: str) -> None:
    """Raise InputError for a text that cannot be a name, path, time or address."""
    if len(text) > TEXT_MAX or not text.isprintable():
        raise InputError(
            f"{where} is {shown(text)}, a text of {len(text)} characters",
            hint=f"write one line of at most {TEXT_MAX} characters",
        )


def shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def model_table(path: Path, table: dict[str, Any]) -> ModelTable:
    """A checked table `[[model]]`. Raises InputError for a wrong one."""
    if wrong := [name for name in table if name not in MODEL_KEYS]:
        raise InputError(
            f"`{path}`: a [[model]] has no {wrong[0]!r}", hint=f"its keys: {', '.join(MODEL_KEYS)}"
        )
    adapters, base = table.get("adapters", {}), table.get("base")
    is_right = isinstance(table.get("path"), str) and isinstance(base, str | None)
    if (
        not is_right
        or not isinstance(adapters, dict)
        or not all(isinstance(place, str) for place in adapters.values())
    ):
        raise InputError(
            f"`{path}`: a [[model]] needs a path, and adapters are NAME = PATH",
            hint='path = "base.gguf" and adapters = { pirate = "./my-lora:0.8" }',
        )
    for text in (table["path"], base or "", *adapters.values()):
        refuse_unreadable(f"`{path}`: a [[model]]'s path", text)
    texts = tuple(f"{name}={place}" for name, place in adapters.items())
    return ModelTable(table["path"], texts, base)
