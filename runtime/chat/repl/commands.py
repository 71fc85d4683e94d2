"""The /commands of the REPL, and their table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import click

from exporter.core.errors import DecantError, InputError
from exporter.core.near_names import did_you_mean
from exporter.model_store import find_model
from runtime.chat.repl.compare import compare
from runtime.chat.repl.keeping import attach, copy_, export_, load, read, save
from runtime.chat.repl.loop import LeaveError, Repl, answer_last, numbers_text, take_turn, trim
from runtime.chat.repl.screen import DIM
from runtime.chat.repl.set_options import BY_NAME, SETTINGS, changed, parse_setting
from runtime.chat.session import Chosen, Cleared, ModelSet, SettingsSet, SystemSet, Undone
from runtime.engine.adapters import BASE, parse_scale
from runtime.engine.local import LocalEngine
from runtime.engine.opened_model import open_model
from runtime.engine.remote_engine import RemoteEngine
from runtime.engine.selection import AdapterSelection

Kind = Literal["", "adapter", "model", "path", "setting", "session", "format", "topic"]
TOPICS = ("model", "settings", "system", "history", "reasoning")
SHOWN_TOKENS = 2000  # tokens printed at most


@dataclass(frozen=True, slots=True)
class Command:
    """One /command and its line of help."""

    name: str
    usage: str
    summary: str
    run: Callable[[Repl, str], None]
    completes: Kind = ""


def handle(repl: Repl, text: str) -> None:
    """Run `/name argument`. Raises InputError for an unknown name."""
    name, *rest = text[1:].split(maxsplit=1)
    argument = rest[0] if rest else ""
    name = ALIASES.get(name, name)
    command = COMMANDS.get(name)
    if command is None:
        raise InputError(
            f"there is no command /{name}",
            hint=did_you_mean(name, COMMANDS, "/help lists them", form="/{}"),
        )
    command.run(repl, argument.strip())


def help_(repl: Repl, argument: str) -> None:
    del argument
    repl.screen.listed([(f"/{command.name} {command.usage}", command.summary) for command in ALL])
    repl.screen.note(
        '""" begins and ends a block of lines, Alt-Enter begins a new line, Ctrl-G opens $EDITOR;'
        " Ctrl-C stops an answer, twice leaves"
    )


def model(repl: Repl, argument: str) -> None:
    if not argument:
        repl.screen.line(repl.engine.model)
        return
    old = repl.engine
    if isinstance(old, RemoteEngine):
        repl.engine = RemoteEngine(old.remote, argument, raw=old.raw)
    else:
        assert isinstance(old, LocalEngine)
        path = find_model(argument, repl.store, report=repl.screen.report)
        is_first = repl.first is not None and repl.first.header.path.samefile(path)
        opened = repl.first if is_first and repl.first else open_model(path)
        old.stop()  # the new model may need its memory
        try:
            new = LocalEngine(
                opened,
                old.options,
                raw=old.raw,
                speculation=old.wanted.for_another(),
                prompt_folder=old.prompt_folder,
                report=repl.screen.report,
            )
            new.start()
        except DecantError:
            old.start()
            raise
        repl.engine = new
        for other in repl.others.values():
            other.stop()
        repl.others.clear()
    repl.session.record(ModelSet(repl.engine.model, repl.engine.source()))
    repl.screen.note(f"({repl.engine.model} answers from now on)")


def adapter(repl: Repl, argument: str) -> None:
    """List the adapters, or use one. Raises InputError for an unknown one."""
    names = (BASE, *repl.engine.choices)
    if not repl.engine.choices:
        raise InputError(
            f"{repl.engine.model} has no adapters loaded",
            hint="load some: decant chat BASE --adapter NAME=PATH",
        )
    if not argument:
        for name in names:
            mark = "*" if name == (repl.selection.adapter or BASE) else " "
            repl.screen.line(f"{mark} {repl.selection if mark == '*' else name}")
        return
    name, colon, number = argument.partition(":")
    if name not in names:
        raise InputError(
            f"there is no adapter {name!r}",
            hint=did_you_mean(name, names, f"there are: {', '.join(names)}"),
        )
    if name == BASE:
        choose(repl, AdapterSelection())
        return
    assert isinstance(repl.engine, LocalEngine)
    named = next(one.scale for one in repl.engine.loaded.adapters if one.name == name)
    choose(repl, AdapterSelection(name, parse_scale(number) if colon else named))


def scale(repl: Repl, argument: str) -> None:
    """Set the scale of the adapter in use. Raises InputError without an adapter."""
    if not repl.selection.adapter:
        raise InputError("no adapter is in use", hint="/adapter NAME chooses one")
    choose(repl, replace(repl.selection, scale=parse_scale(argument)))


def choose(repl: Repl, selection: AdapterSelection) -> None:
    repl.session.record(Chosen(selection.adapter, selection.scale))
    repl.screen.note(f"({selection} answers from now on)")


def compare_(repl: Repl, argument: str) -> None:
    names = argument.split()
    wants_next = bool(names) and names[0] == "next"
    if wants_next or repl.session.conversation.last is None:
        repl.answer_next = partial(compare, names=" ".join(names[wants_next:]))
        repl.screen.note("(all of them answer your next message, side by side)")
    else:
        compare(repl, argument)


def system(repl: Repl, argument: str) -> None:
    if not argument:
        repl.screen.line(repl.session.conversation.system or "(none)")
        return
    text = "" if argument == "none" else argument
    repl.session.record(SystemSet(text))
    repl.screen.note("(set)" if text else "(no system message)")


def set_(repl: Repl, argument: str) -> None:
    if not argument:
        now = settings_now(repl)
        shown = [(one.name, value_text(now.get(one.name)), one.summary) for one in SETTINGS]
        repl.screen.listed([(f"{name:<18} {value:<8}", text) for name, value, text in shown])
        return
    name, value = parse_setting(argument)
    if not BY_NAME[name].is_sent and value is None:
        repl.shown.pop(name, None)
    elif not BY_NAME[name].is_sent:
        repl.shown[name] = value
    else:
        kept = repl.session.conversation.settings
        repl.session.record(SettingsSet(changed(kept, {name: value})))
    repl.screen.note(f"({name} = {value_text(value) or 'default'})")


def value_text(value: object) -> str:
    """A setting's value in the form that users type."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ",".join(map(str, value)).replace("\n", "\\n")
    shown = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    first = shown.strip().partition("\n")[0]
    return shown if shown == first else f"{first} …"


def settings_now(repl: Repl) -> dict[str, object]:
    return {**repl.shown, **repl.session.conversation.settings}


def show(repl: Repl, argument: str) -> None:
    """Show a topic. Raises InputError for an unknown one."""
    conversation = repl.session.conversation
    match argument or "model":
        case "model":
            repl.screen.pairs({**repl.engine.facts(), "answers": repl.who})
        case "settings":
            set_(repl, "")
        case "system":
            system(repl, "")
        case "history":
            for number, turn in enumerate(conversation.turns):
                left_out = " (left out)" if number < conversation.first else ""
                repl.screen.line(f"> {turn.question}{left_out}")
                repl.screen.line(turn.answer if turn.answer is not None else "(no answer)")
        case "reasoning":
            thoughts = conversation.last.thoughts if conversation.last else ""
            repl.screen.line(thoughts or "(the last answer has none)", DIM)
        case other:
            raise InputError(
                f"there is no topic {other!r}",
                hint=did_you_mean(other, TOPICS, f"/show {'|'.join(TOPICS)}", form="/show {}"),
            )


def stats(repl: Repl, argument: str) -> None:
    del argument
    repl.shown["stats"] = not repl.shown.get("stats")
    repl.screen.note(f"(numbers after each answer: {'on' if repl.shown['stats'] else 'off'})")
    last = repl.session.conversation.last
    if repl.shown["stats"] and isinstance(repl.engine, LocalEngine):
        for line in repl.engine.fit.lines():
            if "GPU" in line or line.startswith("memory"):
                repl.screen.note(line)
    if repl.shown["stats"] and last and last.numbers:
        from runtime.engine.openai_client import Stopped

        known = {one.name for one in fields(Stopped)} - {"reason"}
        numbers = {name: value for name, value in last.numbers.items() if name in known}
        repl.screen.note(numbers_text(Stopped("", **numbers), last.who))  # type: ignore[arg-type]


def tokens(repl: Repl, argument: str) -> None:
    """Show the tokens of a text, or of the last answer. Raises InputError without either."""
    last = repl.session.conversation.last
    text = argument or (last.answer if last else None) or ""
    if not text:
        raise InputError("there is no answer to tokenize yet", hint="/tokens TEXT")
    found = repl.engine.tokens(text)
    for number, (token, piece) in enumerate(found[:SHOWN_TOKENS]):
        shown = repr(piece)[1:-1] if isinstance(piece, str) else piece.hex(" ")
        repl.screen.write(f"{shown}", DIM if number % 2 else "")
        repl.screen.write(f"·{token} ", DIM)
    repl.screen.line()
    repl.screen.note(f"{len(found)} tokens, {len(text)} characters")


def regen(repl: Repl, argument: str) -> None:
    """Replace the last answer by a new one. Raises InputError if there is none."""
    del argument
    last = repl.session.conversation.last
    if last is None or last.answer is None:
        raise InputError("there is no answer to replace yet", hint="/retry answers the message")
    answer_last(repl)


def retry(repl: Repl, argument: str) -> None:
    """Answer the last message again. Raises InputError if there is none."""
    del argument
    if repl.session.conversation.last is None:
        raise InputError("there is no message yet", hint="type a message")
    answer_last(repl)


def undo(repl: Repl, argument: str) -> None:
    """Remove the last turn. Raises InputError if there is none."""
    del argument
    last = repl.session.conversation.last
    if last is None:
        raise InputError("there is no message yet", hint="type a message")
    repl.session.record(Undone())
    repl.screen.note(f"(taken back: {' '.join(last.question.split())[:60]})")


def edit(repl: Repl, argument: str) -> None:
    """Edit the last message and answer it. Raises InputError if the editor does not start."""
    del argument
    last = repl.session.conversation.last
    try:
        with repl.lines.lent():
            text = click.edit(last.question if last else "", extension=".md")
    except click.ClickException as error:
        raise InputError(error.format_message(), hint="does $EDITOR name a program?") from error
    if text is None or not text.strip():
        repl.screen.note("(the message is unchanged)")
        return
    if last is not None:
        repl.session.record(Undone())
        repl.images += last.images
    take_turn(repl, text.strip())


def clear(repl: Repl, argument: str) -> None:
    del argument
    repl.session.record(Cleared())
    repl.images.clear()
    repl.texts.clear()
    repl.screen.note("(the conversation is empty)")


def trim_(repl: Repl, argument: str) -> None:
    """Leave out the oldest turns. Raises InputError if only one turn is sent."""
    del argument
    conversation = repl.session.conversation
    if len(conversation.turns) - conversation.first < 2:  # noqa: PLR2004 - the last one stays
        raise InputError("there is only one turn, and the last one stays", hint="/clear drops it")
    context = repl.engine.fit.context if isinstance(repl.engine, LocalEngine) else 0
    trim(repl, context)


def leave(repl: Repl, argument: str) -> None:
    del repl, argument
    raise LeaveError


ALL = (
    Command("help", "", "show this list", help_),
    Command("adapter", "[NAME[:SCALE]]", "list the adapters, or use one", adapter, "adapter"),
    Command("scale", "X", "set the scale of the adapter", scale),
    Command("compare", "[next] [NAME…]", "compare answers; keep one", compare_, "adapter"),
    Command("model", "[NAME]", "continue with another model", model, "model"),
    Command("system", "[TEXT|none]", "show or set the system message", system),
    Command("set", "[NAME=VALUE]", "show or change the settings", set_, "setting"),
    Command("show", "[TOPIC]", ", ".join(TOPICS), show, "topic"),
    Command("stats", "", "show numbers after each answer, or stop showing them", stats),
    Command("tokens", "[TEXT]", "show the tokens of a text, or of the last answer", tokens),
    Command("regen", "", "replace the last answer by a new one", regen),
    Command("retry", "", "answer the last message again", retry),
    Command("undo", "", "take back the last message and its answer", undo),
    Command("edit", "", "change the last message in $EDITOR, and answer it", edit),
    Command("clear", "", "drop all turns", clear),
    Command("trim", "", "leave out the oldest turns, to make room in the context", trim_),
    Command("attach", "FILE", "add an image to the next message", attach, "path"),
    Command("read", "FILE", "add a text file to the next message", read, "path"),
    Command("save", "[NAME]", "keep the conversation, under a name", save),
    Command("load", "[NAME]", "list conversations, or continue one", load, "session"),
    Command("export", "md|json FILE", "write the conversation to a file", export_, "format"),
    Command("copy", "", "copy the last answer to the clipboard", copy_),
    Command("exit", "", "leave; so does Ctrl-D", leave),
)  # fmt: skip
COMMANDS = {command.name: command for command in ALL}
ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "h": "help"}
