"""Conversations in a row: OpenAI's messages, and ShareGPT's turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from runtime.evaluation.data.file_rows import RowError
from runtime.evaluation.item import Message

Turn: TypeAlias = dict[str, Any]
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "prompter": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "bard": "assistant", "bing": "assistant",
    "function_call": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
"""OpenAI's roles by the names that data gives them."""
SPEAKER, CONTENT = ("role", "from"), ("content", "value")
"""The keys of a turn: OpenAI's, then ShareGPT's."""


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns, or JSON text of one."""
    turns = from_json(value)
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, Mapping) and has_keys(turn) for turn in turns)
    )


def is_sharegpt(value: object) -> bool:
    """Whether the turns of a conversation have ShareGPT's keys."""
    turns = from_json(value)
    return isinstance(turns, list) and any("from" in turn for turn in turns)


def has_keys(turn: Mapping[str, Any]) -> bool:
    return any(key in turn for key in SPEAKER)


def from_json(value: object) -> object:
    """The list that a JSON text holds, as in a CSV column; any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def read_turns(value: object, column: str) -> list[Turn]:
    """A column's turns, with OpenAI's keys and roles. Raises RowError."""
    turns = from_json(value)
    if isinstance(turns, Mapping) and has_keys(turns):
        turns = [turns]
    if not isinstance(turns, list):
        raise RowError(f"its `{column}` is no list of messages")
    if not turns:
        raise RowError(f"its `{column}` is empty")
    return [read_turn(turn, f"turn {number} of `{column}`") for number, turn in enumerate(turns, 1)]


def read_turn(turn: object, name: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError(f"{name} is no object with a role and a content")
    speaker = next((turn[key] for key in SPEAKER if turn.get(key) is not None), None)
    if speaker is None:
        raise RowError(f"{name} has no `role`")
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RowError(f"{name} has the role {str(speaker)[:40]!r}, which decant does not know")
    content = next((turn[key] for key in CONTENT if turn.get(key) is not None), None)
    if content is not None and not isinstance(content, str) and not is_parts(content):
        raise RowError(f"{name} has a content that is neither a text nor a list of parts")
    if content is None and not (role == "assistant" and turn.get("tool_calls")):
        raise RowError(f"{name} has no content")
    kept = {
        key: one
        for key, one in turn.items()
        if key in ("name", "tool_calls", "tool_call_id") and one is not None
    }
    return {"role": role, "content": content, **kept}


def is_parts(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(part, Mapping) for part in content)


def text_of(turn: Message) -> str:
    """The text of a turn, without pictures and the like."""
    content = turn["content"]
    if isinstance(content, str):
        return content.strip()
    parts = [part.get("text") for part in content or ()]
    return "".join(part for part in parts if isinstance(part, str)).strip()


def split_answer(turns: Sequence[Turn], column: str) -> tuple[list[Turn], str, int]:
    """The turns before the last answer, the answer, and the number of turns after it.

    The last answer is the assistant's last turn with a text. Raises RowError where there is none,
    or no question before it.
    """
    places = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        raise RowError(f"its `{column}` has no turn of the assistant")
    place = next((n for n in reversed(places) if text_of(turns[n])), None)
    if place is None:
        calls = any(turns[n].get("tool_calls") for n in places)
        reason = "only calls of tools, without a text" if calls else "only empty answers"
        raise RowError(f"its `{column}` has {reason}")
    before = list(turns[:place])
    if not any(turn["role"] in ("user", "tool") for turn in before):
        raise RowError(f"its `{column}` has no turn of the user before the answer")
    return before, text_of(turns[place]), len(turns) - place - 1


def with_system(turns: Sequence[Turn], system: str) -> list[Turn]:
    """The turns, with a system message in front where they have none."""
    if not system or any(turn["role"] == "system" for turn in turns):
        return list(turns)
    return [message("system", system), *turns]


def message(role: str, text: str) -> Turn:
    """A turn with a text."""
    return {"role": role, "content": text}
