"""`/set name=value`: the settings and their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from exporter.core.errors import InputError
from exporter.core.near_names import did_you_mean
from runtime.chat.repl.attachments import decoded, user_path

Value = float | int | bool | str | list[str] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, its values and their effect."""

    name: str
    summary: str
    parse: Callable[[str], Value]
    is_sent: bool = True
    """Whether it is sent to the engine; other settings change only the terminal."""


def number(least: float, most: float = math.inf) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        value = float(text)
        if not (least <= value <= most and math.isfinite(value)):
            raise ValueError
        return value

    return parse


def whole(least: int) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    return parse


def switch(text: str) -> Value:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def texts(text: str) -> Value:
    """Texts at which answers stop, with `\\n` for a newline."""
    return [part.replace("\\n", "\n") for part in text.split(",") if part]


def text_file(text: str) -> Value:
    """The content of a file. Raises InputError for one that cannot be read."""
    return decoded(user_path(text), hint="convert it first")


def schema_file(text: str) -> Value:
    """The content of a file with a JSON schema. Raises InputError for other files."""
    found = text_file(text)
    try:
        schema = json.loads(str(found))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"`{text}` is not JSON: {error}", hint="a JSON schema is needed"
        ) from error
    if not isinstance(schema, dict):
        raise InputError(f"`{text}` is JSON, but not an object", hint="a JSON schema is needed")
    return found


SETTINGS = (
    Setting("temperature", "0 always takes the most likely token", number(0)),
    Setting("top_p", "only the most likely tokens, up to this probability, 0 to 1", number(0, 1)),
    Setting("top_k", "only this many of the most likely tokens; 0: all", whole(0)),
    Setting("min_p", "no token below this share of the most likely one, 0 to 1", number(0, 1)),
    Setting("seed", "same seed, same answer", whole(-1)),
    Setting("max_tokens", "stop after this many tokens", whole(1)),
    Setting("repeat_penalty", "above 1: fewer repetitions", number(0.001)),
    Setting("presence_penalty", "-2 to 2, as in OpenAI's API", number(-2, 2)),
    Setting("frequency_penalty", "-2 to 2, as in OpenAI's API", number(-2, 2)),
    Setting("stop", "texts to stop at, separated by commas", texts),
    Setting("thinking", "on or off: think first, where the chat template can", switch),
    Setting("json_schema", "a file: answers are JSON of its schema", schema_file),
    Setting("grammar", "a file: answers keep to its GBNF grammar", text_file),
    Setting("markdown", "on or off: render answers", switch, is_sent=False),
    Setting("stats", "on or off: numbers after each answer", switch, is_sent=False),
    Setting("reasoning", "on or off: show what the model thinks", switch, is_sent=False),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}
FORMS = ("json_schema", "grammar")
"""The settings of which the engine takes one."""


def parse_setting(text: str) -> tuple[str, Value]:
    """Parse NAME=VALUE; an empty value gives None, for the default. Raises InputError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    setting = BY_NAME.get(name)
    if setting is None:
        raise InputError(
            f"there is no setting {name!r}",
            hint=did_you_mean(name, BY_NAME, f"there are {', '.join(BY_NAME)}"),
        )
    if not equals:
        raise InputError(f"{name} needs a value", hint=f"/set {name}=…: {setting.summary}")
    if not value:
        return name, None
    try:
        return name, setting.parse(value)
    except ValueError:
        raise InputError(f"{name} cannot be {value!r}", hint=setting.summary) from None


def changed(kept: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """The settings after a change; None unsets one. A schema replaces a grammar, and vice versa."""
    found = {**kept, **given}
    for one, other in (FORMS, FORMS[::-1]):
        if given.get(one) is not None and other not in given:
            found.pop(other, None)
    return {name: value for name, value in found.items() if value is not None}


def sent(settings: Mapping[str, Value]) -> dict[str, object]:
    """The settings that are sent to the engine, as OpenAI's API and llama-server name them."""
    known = {name: value for name, value in settings.items() if name in BY_NAME}
    found: dict[str, object] = {
        name: value for name, value in known.items() if BY_NAME[name].is_sent and value is not None
    }
    if "thinking" in found:
        found["chat_template_kwargs"] = {"enable_thinking": found.pop("thinking")}
    if "json_schema" in found:
        schema = json.loads(str(found.pop("json_schema")))
        found["response_format"] = {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": schema}
        }  # fmt: skip
    return found
