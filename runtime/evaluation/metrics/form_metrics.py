"""Metrics of an answer's form that the user gives: `regex=PATTERN` and `json_schema=FILE`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from exporter.core.errors import InputError
from runtime.evaluation.item import Item
from runtime.evaluation.metric import Metric
from runtime.evaluation.metrics.figures import mean_metric
from runtime.evaluation.metrics.libraries import library
from runtime.evaluation.outcome import Outcome

REGEX, JSON_SCHEMA = "regex=", "json_schema="
SHOWN = 40  # characters of a pattern in a metric's title
MOST = 100_000  # characters of an answer that a pattern is searched in


def is_form(name: str) -> bool:
    """Whether the name of a metric gives a form."""
    return name.startswith((REGEX, JSON_SCHEMA))


def form_metric(name: str) -> Metric:
    """The share of answers of a form. Raises InputError for a pattern or schema that is wrong."""
    kind, _, given = name.partition("=")
    return of_pattern(given) if f"{kind}=" == REGEX else of_schema(Path(given))


def of_pattern(text: str) -> Metric:
    """The share of answers in which a regular expression is found. Raises InputError."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(
            f"{text!r} is no regular expression: {error}",
            hint="Python's syntax: --metric regex=^Yes",
        ) from error

    def value(_item: Item, outcome: Outcome) -> float | None:
        if outcome.answer is None:
            return None
        return float(pattern.search(outcome.answer[:MOST]) is not None)

    shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
    return mean_metric(f"{REGEX}{text}", f"matches {shown}", "answer", value, is_binary=True)


def of_schema(path: Path) -> Metric:
    """The share of answers that are JSON and satisfy a JSON schema. Raises InputError."""
    try:
        schema: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON schema: {error}", hint="a file with JSON") from error
    jsonschema = library("jsonschema")
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(
            f"{path} is no JSON schema: {error.message}", hint="https://json-schema.org/learn"
        ) from error
    validator = kind(schema, registry=without_network())

    def value(_item: Item, outcome: Outcome) -> float | None:
        """Whether an answer fits the schema. Raises InputError if it refers to another one."""
        if outcome.answer is None:
            return None
        try:
            found = json.loads(outcome.answer)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return float(validator.is_valid(found))
        except RecursionError:
            return 0.0
        except library("referencing.exceptions").Unresolvable as error:
            raise InputError(
                f"{path} refers to a schema that is not in it: {error}",
                hint="put it into the file, under $defs",
            ) from error

    return mean_metric(
        f"{JSON_SCHEMA}{path}", f"valid by {path.name}", "answer", value, is_binary=True
    )


def without_network() -> Any:  # referencing's Registry
    """A registry that fetches nothing: a schema's references lie in the schema."""
    return library("referencing").Registry()
