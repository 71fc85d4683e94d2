"""Puts a conversation at the terminal together."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine import Engine, LocalEngine, opening_choice
from runtime.repl.commands import handle
from runtime.repl.completion import completions
from runtime.repl.keeping import welcome_back
from runtime.repl.lines import EditedLines, Lines, PlainLines
from runtime.repl.loop import Repl, run
from runtime.repl.screen import Screen
from runtime.session import Chosen, SettingsSet, SystemSet
from runtime.sessions import Session, new_session

if TYPE_CHECKING:
    from runtime.commands import Options


def converse(
    engine: Engine, kept: Session | None, options: Options, store: Path, sessions: Path
) -> int:
    """Go on with `kept`, or begin a conversation; gives the exit code."""
    screen = Screen()
    folder = sessions if options.save else None
    session = kept or new_session(folder, engine.model, engine.source())
    repl = Repl(engine, session, screen, PlainLines(), store, sessions)
    repl.first = engine.loaded if isinstance(engine, LocalEngine) else None
    repl.shown = {
        "markdown": options.markdown and screen.is_fancy,
        "stats": options.stats,
        "reasoning": True,
    }
    if screen.is_fancy and sys.stdin.isatty():
        history = sessions.parent / "chat-history"
        repl.lines = edited_lines(repl, history)
    if options.system is not None:
        session.record(SystemSet(options.system))
    if options.settings:
        session.record(SettingsSet({**session.conversation.settings, **options.settings}))
    if kept is not None:
        welcome_back(repl)
    elif isinstance(engine, LocalEngine) and engine.choices:
        choice = opening_choice(engine)
        session.record(Chosen(choice.adapter, choice.scale))
    screen.note(f"{engine.model}; /help lists the commands, Ctrl-D leaves")
    try:
        return run(repl, handle)
    finally:
        repl.session.close()
        repl.engine.stop()
        for other in repl.others.values():
            other.stop()


def edited_lines(repl: Repl, history: Path) -> Lines:
    return EditedLines(history, partial(completions, repl))
