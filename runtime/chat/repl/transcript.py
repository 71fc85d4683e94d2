"""Exports a conversation to a file, as Markdown or JSON."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from exporter.core.atomic_file import atomic_write
from exporter.core.errors import InputError, OutputError
from runtime.chat.session import Conversation

FORMATS = ("md", "json")


def export(conversation: Conversation, kind: str, path: Path) -> None:
    """Write the conversation as `md` or `json`. Raises InputError, OutputError, SpaceError."""
    if kind not in FORMATS:
        raise InputError(f"{kind!r} is not a format", hint="/export md FILE, or /export json FILE")
    if path.exists():
        raise OutputError(f"`{path}` exists", hint="name another file")
    text = as_markdown(conversation) if kind == "md" else as_json(conversation)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


def as_markdown(conversation: Conversation) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.created))
    parts = [f"# {conversation.name or conversation.id}", f"{conversation.model}, {when}"]
    if conversation.system:
        parts += ["## System", conversation.system]
    for turn in conversation.turns:
        images = [f"({image.name})" for image in turn.images]
        parts += ["## You", "\n\n".join([*images, turn.question])]
        if turn.answer is not None:
            stopped = " (stopped)" if turn.is_partial else ""
            parts += [f"## {turn.who or 'Model'}{stopped}", turn.answer]
    return "\n\n".join(parts) + "\n"


def as_json(conversation: Conversation) -> str:
    """OpenAI's messages, and decant's data about each turn."""
    found = {
        "id": conversation.id,
        "name": conversation.name,
        "model": conversation.model,
        "created": conversation.created,
        "settings": dict(conversation.settings),
        "messages": conversation.messages(),
        "turns": [asdict(turn) for turn in conversation.turns],
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
