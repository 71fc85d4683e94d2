"""Completions for the Tab key."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.model_store import list_models
from runtime.chat.repl.commands import ALIASES, COMMANDS, TOPICS
from runtime.chat.repl.loop import Repl
from runtime.chat.repl.set_options import SETTINGS
from runtime.chat.repl.transcript import FORMATS
from runtime.chat.session_files import list_sessions
from runtime.engine.adapters import BASE
from runtime.engine.remote_engine import RemoteEngine


def completions(repl: Repl, text: str) -> Sequence[str] | None:
    """The words that may follow in a line; None for paths."""
    if not text.startswith("/"):
        return ()
    name, space, argument = text[1:].partition(" ")
    if not space:
        return [f"/{command}" for command in COMMANDS]
    command = COMMANDS.get(ALIASES.get(name, name))
    kind = command.completes if command else ""
    if kind == "path" or (kind == "format" and " " in argument):
        return None
    return words(repl, kind)


def words(repl: Repl, kind: str) -> Sequence[str]:  # noqa: PLR0911 - one case per kind
    match kind:
        case "adapter":
            return (BASE, *repl.engine.choices)
        case "setting":
            return [f"{setting.name}=" for setting in SETTINGS]
        case "format":
            return FORMATS
        case "topic":
            return TOPICS
        case "session":
            return [one.name or one.id for one in list_sessions(repl.sessions)]
        case "model" if isinstance(repl.engine, RemoteEngine):
            return repl.engine.names
        case "model":
            return [stored.full_name for stored in list_models(repl.store)]
        case _:
            return ()
