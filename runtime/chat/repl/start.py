"""Sets up a conversation at the terminal."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.errors import DecantError
from runtime.chat.repl.commands import handle
from runtime.chat.repl.completion import completions
from runtime.chat.repl.keeping import add_file, welcome_back
from runtime.chat.repl.lines import EditedLines, Lines, PlainLines
from runtime.chat.repl.loop import Repl, run
from runtime.chat.repl.screen import Screen
from runtime.chat.repl.set_options import changed
from runtime.chat.session import Chosen, SettingsSet, SystemSet
from runtime.chat.session_files import Session, new_session
from runtime.engine.local import Engine, LocalEngine, opening_selection

if TYPE_CHECKING:
    from runtime.chat.chat_options import Options


def converse(
    engine: Engine,
    kept: Session | None,
    options: Options,
    store: Path,
    sessions: Path,
    *,
    chosen_anew: bool,
) -> int:
    """Continue `kept`, or begin a conversation; return the exit code.

    chosen_anew: whether the adapters come from the command line, not from the conversation.
    """
    screen = Screen()
    session = kept or begun(engine, sessions if options.save else None, screen)
    repl = Repl(engine, session, screen, PlainLines(), store, sessions)
    repl.first = engine.loaded if isinstance(engine, LocalEngine) else None
    repl.shown = {
        "markdown": options.markdown and screen.is_fancy,
        "stats": options.stats,
        "reasoning": True,
    }
    if screen.is_fancy and sys.stdin.isatty():
        repl.lines = edited_lines(repl, sessions.parent / "chat-history" if options.save else None)
    for path in options.files:
        add_file(repl, path)
    if options.system is not None:
        session.record(SystemSet(options.system))
    if settings := options.settings:  # this may read files
        session.record(SettingsSet(changed(session.conversation.settings, settings)))
    if kept is not None:
        welcome_back(repl)
    if (kept is None or chosen_anew) and isinstance(engine, LocalEngine) and engine.choices:
        selection = opening_selection(engine)
        session.record(Chosen(selection.adapter, selection.scale))
    screen.note(f"{engine.model}; /help lists the commands, Ctrl-D leaves")
    try:
        return run(repl, handle)
    finally:
        repl.lines.close()
        repl.session.close()
        repl.engine.stop()
        for other in repl.others.values():
            other.stop()


def begun(engine: Engine, folder: Path | None, screen: Screen) -> Session:
    """A new conversation; if it cannot be stored, warn and begin it without a file."""
    try:
        return new_session(folder, engine.model, engine.source())
    except DecantError as error:
        screen.warn(f"this conversation is not kept: {error.message}")
        return new_session(None, engine.model, engine.source())


def edited_lines(repl: Repl, history: Path | None) -> Lines:
    offers = partial(completions, repl)
    try:
        return EditedLines(history, offers)
    except OSError as error:
        repl.screen.warn(f"the history is not stored: `{history}`: {error.strerror}")
        return EditedLines(None, offers)
