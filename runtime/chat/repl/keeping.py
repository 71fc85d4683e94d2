"""The /commands that read and write files."""

from __future__ import annotations

from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.paths import size_text
from runtime.chat.repl.attachments import is_image, read_image, read_text, user_path
from runtime.chat.repl.loop import Repl
from runtime.chat.repl.transcript import FORMATS, export
from runtime.chat.session import Chosen, Named
from runtime.chat.session_files import check_name, find_session, list_sessions, resume
from runtime.engine.local import LocalEngine, opening_selection
from runtime.terminal.clipboard import copy

LISTED = 20  # conversations at most


def attach(repl: Repl, argument: str) -> None:
    """Add an image to the next message. Raises InputError if the model takes none."""
    if not repl.engine.sees:
        raise InputError(
            f"{repl.engine.model} takes no images: it has no projector (mmproj)",
            hint="start with --mmproj FILE; /read FILE adds a text",
        )
    image = read_image(user_path(argument))
    repl.images.append(image)
    repl.screen.note(f"({image.name} goes with your next message)")


def read(repl: Repl, argument: str) -> None:
    text = read_text(user_path(argument))
    repl.texts.append(text)
    repl.screen.note(
        f"({Path(argument).name}, {size_text(len(text))}, goes with your next message)"
    )


def add_file(repl: Repl, path: Path) -> None:
    """Add an image or a text to the next message. Raises InputError for other files."""
    (attach if is_image(path) else read)(repl, str(path))


def save(repl: Repl, argument: str) -> None:
    if argument:
        check_name(argument, repl.sessions, repl.session.conversation.id)
        repl.session.record(Named(argument))
    repl.session.keep(repl.sessions)
    ident = argument or repl.session.conversation.name or repl.session.conversation.id
    repl.screen.note(f"(kept: decant chat --resume {ident})")


def load(repl: Repl, argument: str) -> None:
    """List the conversations, or continue one. Raises InputError for the current one."""
    if not argument:
        for one in list_sessions(repl.sessions)[:LISTED]:
            repl.screen.line(f"{one.name or one.id}  {one.turns} turns  {one.title[:50]}")
        return
    path = find_session(repl.sessions, argument)
    if path.stem == repl.session.conversation.id:
        raise InputError("that is this conversation", hint="/load lists the others")
    session = resume(path)
    repl.session.close()
    repl.images.clear()
    repl.texts.clear()
    repl.session = session
    welcome_back(repl)


def welcome_back(repl: Repl) -> None:
    """Show where a conversation stopped; if its adapter is not loaded, choose another."""
    conversation = repl.session.conversation
    repl.screen.note(f"(continuing {conversation.name or conversation.id})")
    if conversation.model != repl.engine.model:
        repl.screen.note(f"(it was with {conversation.model}; now {repl.engine.model} answers)")
    selection = conversation.selection
    if selection.adapter and selection.adapter not in repl.engine.choices:
        repl.screen.warn(f"the adapter {selection.adapter!r} is not loaded")
    is_here = selection.adapter in ("", *repl.engine.choices)
    if not is_here and isinstance(repl.engine, LocalEngine):
        fresh = opening_selection(repl.engine)
        repl.session.record(Chosen(fresh.adapter, fresh.scale))
    for turn in conversation.turns[-1:]:
        repl.screen.line(f"> {turn.question}")
        if turn.answer is None:
            repl.screen.note("(it has no answer yet: /retry asks again)")
        else:
            repl.screen.line(turn.answer)


def export_(repl: Repl, argument: str) -> None:
    """Write the conversation to a file. Raises InputError without a format and a file."""
    kind, _, path = argument.partition(" ")
    if kind not in FORMATS or not path:
        raise InputError("name a format and a file", hint="/export md FILE, or /export json FILE")
    export(repl.session.conversation, kind, user_path(path.strip()))
    repl.screen.note(f"(written: {path.strip()})")


def copy_(repl: Repl, argument: str) -> None:
    """Copy the last answer to the clipboard. Raises InputError if there is none."""
    del argument
    last = repl.session.conversation.last
    if last is None or not last.answer:
        raise InputError("there is no answer to copy yet", hint="ask something first")
    by = copy(last.answer)
    repl.screen.note(f"(copied by {by})")
