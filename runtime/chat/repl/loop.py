"""The REPL: reads a message or a command and shows the answer, until the user leaves."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from exporter.core.errors import (
    EXIT_INTERRUPTED,
    ContextFullError,
    DecantError,
    EngineDiedError,
)
from runtime.chat.repl.lines import Lines
from runtime.chat.repl.screen import DIM, Screen
from runtime.chat.repl.set_options import Value, sent
from runtime.chat.session import Answered, Image, QuestionAdded, Trimmed, Undone, after
from runtime.chat.session_files import Session
from runtime.engine.local import Engine, LocalEngine, answerer
from runtime.engine.openai_client import Delta, Piece, Stopped, Thought
from runtime.engine.opened_model import Model
from runtime.engine.selection import AdapterSelection
from runtime.terminal.markdown import MarkdownStream

COMMAND = re.compile(r"/[a-z?]+(\s|$)")  # but not a path at a message's beginning
TRIM_TO = 0.5  # of the context, so that several more turns fit
LEAVING = ("exit", "quit")  # as they are typed in other programs, without a slash
LEAVE = "Ctrl-C again leaves, and so does Ctrl-D; /help lists the commands"


class LeaveError(Exception):
    """The user leaves with `/exit`."""


@dataclass
class Repl:
    """The state of a conversation at a terminal."""

    engine: Engine
    session: Session
    screen: Screen
    lines: Lines
    store: Path
    sessions: Path
    """The folder of stored conversations."""
    shown: dict[str, Value] = field(default_factory=dict)
    """Settings of the terminal, which are not sent to the engine."""
    images: list[Image] = field(default_factory=list)
    """The images of the next message."""
    texts: list[str] = field(default_factory=list)
    """The texts of the next message."""
    answer_next: Callable[[Repl], None] | None = None
    """The function that answers the next message, if `/compare next` has set one."""
    others: dict[Path, LocalEngine] = field(default_factory=dict)
    """Models loaded for comparisons, by path."""
    first: Model | None = None
    """The first model with its adapters, so that `/model` can return to it."""

    @property
    def settings(self) -> dict[str, object]:
        return sent(self.session.conversation.settings)

    @property
    def selection(self) -> AdapterSelection:
        return self.session.conversation.selection

    @property
    def who(self) -> str:
        return answerer(self.engine, self.selection)

    @property
    def is_local(self) -> bool:
        return isinstance(self.engine, LocalEngine)

    def prompt(self) -> str:
        return f"{self.selection}> " if self.engine.choices else "> "


Handler = Callable[[Repl, str], None]


def run(repl: Repl, handle: Handler) -> int:
    """Converse until the user leaves; return the exit code. `handle` runs /commands."""
    interrupted = False
    while True:
        try:
            repl.screen.fresh_line()
            text = repl.lines.read(repl.prompt())
            interrupted = False
            if text.strip() in LEAVING:
                return 0
            if COMMAND.match(text):
                handle(repl, text)
            elif text or repl.images or repl.texts:
                take_turn(repl, text)
        except (EOFError, LeaveError):
            return 0
        except KeyboardInterrupt:
            if interrupted:
                return EXIT_INTERRUPTED
            interrupted = True
            repl.screen.note(LEAVE)
        except DecantError as error:
            repl.screen.error(error)


def take_turn(repl: Repl, text: str) -> None:
    """Record a message with its attachments, and answer it."""
    question = "\n\n".join(part for part in (*repl.texts, text) if part)
    repl.session.record(QuestionAdded(question, tuple(repl.images)))
    repl.texts.clear()
    repl.images.clear()
    answer, repl.answer_next = repl.answer_next or answer_last, None
    answer(repl)


def answer_last(repl: Repl) -> None:
    """Answer the last question, even if it already has an answer, and record the result."""
    taken = Taken()
    try:
        stream(repl, taken)
    except KeyboardInterrupt:
        taken.stopped = None
    except ContextFullError as error:
        make_room(repl, error)
        return
    except DecantError as error:
        taken.error = error
    with no_ctrl_c():
        repl.screen.fresh_line()
        if taken.text or taken.stopped:
            repl.session.record(taken.answered(repl.who))
        tell_end(repl, taken)
    if isinstance(taken.error, EngineDiedError):
        bring_back(repl)


@contextmanager
def no_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C in the block: a second press must not lose what the first one saved."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stream(repl: Repl, taken: Taken) -> None:
    """Show the answer while it streams."""
    messages = repl.session.conversation.asking()
    show = shown_as_markdown if repl.shown.get("markdown") else shown_raw
    with closing(repl.engine.answer(messages, repl.settings, repl.selection)) as pieces:
        show(repl, taken.of(pieces))


@dataclass
class Taken:
    """The parts of an answer so far."""

    text: str = ""
    thoughts: str = ""
    stopped: Stopped | None = None
    """None until the answer is complete."""
    error: DecantError | None = None
    """The error that ended the answer, if any."""

    def of(self, pieces: Iterator[Piece]) -> Iterator[Delta | Thought]:
        """Yield the pieces, and keep their text."""
        for piece in pieces:
            match piece:
                case Delta():
                    self.text += piece.text
                    yield piece
                case Thought():
                    self.thoughts += piece.text
                    yield piece
                case Stopped():
                    self.stopped = piece

    def answered(self, who: str) -> Answered:
        numbers = asdict(self.stopped) if self.stopped else {}
        numbers.pop("reason", None)
        partial = self.stopped is None
        return Answered(self.text, self.thoughts, partial, who, numbers)


def shown_raw(repl: Repl, pieces: Iterator[Delta | Thought]) -> None:
    """Show pieces as they come; a terminal gets no control characters."""
    thinking = False
    for piece in pieces:
        if isinstance(piece, Thought):
            show_thought(repl, piece.text, first=not thinking)
            thinking = True
        else:
            if thinking:
                repl.screen.fresh_line()
                thinking = False
            repl.screen.write(piece.text)


def shown_as_markdown(repl: Repl, pieces: Iterator[Delta | Thought]) -> None:
    """Show thoughts dimmed, then the answer rendered."""
    thinking = False
    with repl.screen.undisturbed():
        for piece in pieces:
            if isinstance(piece, Thought):
                show_thought(repl, piece.text, first=not thinking)
                thinking = True
                continue
            repl.screen.fresh_line()
            with MarkdownStream() as markdown:
                markdown.write(piece.text)
                for later in pieces:
                    if isinstance(later, Delta):
                        markdown.write(later.text)


def show_thought(repl: Repl, text: str, *, first: bool) -> None:
    """Show a thought dimmed, or one line in place of all thoughts."""
    if repl.shown.get("reasoning", True):
        repl.screen.write(text, DIM)
    elif first:
        repl.screen.write("thinking … (/show reasoning shows it)", DIM)


def tell_end(repl: Repl, taken: Taken) -> None:
    """Report why an answer ended early, and show its numbers."""
    if taken.error is not None:
        repl.screen.error(taken.error)
        return
    if taken.stopped is None:
        if taken.text or taken.thoughts:
            repl.screen.note("(stopped; the answer so far is kept)")
        else:
            repl.screen.note("(stopped)")
        return
    limit = repl.settings.get("max_tokens")
    if taken.stopped.reason == "length" and limit is None and not repl.is_local:
        repl.screen.note("(cut off at the server's limit of tokens)")
    elif taken.stopped.reason == "length" and limit is None:
        repl.screen.warn(
            "the context is full, and the answer was cut off there;"
            " /trim leaves out the oldest turns, /undo the last"
        )
    elif taken.stopped.reason == "length":
        repl.screen.note(f"(cut off after max_tokens={limit})")
    if repl.shown.get("stats"):
        repl.screen.note(numbers_text(taken.stopped, repl.who))


def numbers_text(numbers: Stopped, who: str) -> str:
    """Counts and speeds on one line."""
    cached = f", {numbers.cached_tokens} cached" if numbers.cached_tokens else ""
    prefill = f" at {numbers.prompt_per_second:.0f}/s" if numbers.prompt_per_second else ""
    decode = f" at {numbers.tokens_per_second:.1f}/s" if numbers.tokens_per_second else ""
    right = f", {numbers.accepted} of {numbers.guessed} guesses right" if numbers.guessed else ""
    return (
        f"prompt {numbers.prompt_tokens} tokens{cached}{prefill};"
        f" answer {numbers.tokens} tokens{decode}{right};"
        f" first after {numbers.first_token_s:.2f} s; {who}"
    )


def bring_back(repl: Repl) -> None:
    """Restart an engine that died; the conversation is unchanged."""
    if isinstance(repl.engine, LocalEngine):
        repl.engine.start()
        repl.screen.note("the model is loaded again; /retry asks once more")


def make_room(repl: Repl, error: ContextFullError) -> None:
    """Report that the context is full, and do what the user chooses."""
    repl.screen.warn(
        f"the context is full: the conversation has {error.prompt} tokens, and there is room"
        f" for {error.context}"
    )
    sent_turns = len(repl.session.conversation.turns) - repl.session.conversation.first
    trims = "t leaves out the oldest turns, " if sent_turns > 1 else ""
    try:
        answer = repl.lines.choose(f"{trims}u takes back your message, Enter leaves it: ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer == "u":
        repl.session.record(Undone())
    elif answer == "t" and trims:
        trim(repl, error.context)
        answer_last(repl)


def trim(repl: Repl, context: int) -> None:
    """Leave out the oldest turns until the others fill at most half of the context.

    The last turn is always kept. If the server does not count tokens, half of the turns are
    left out.
    """
    conversation = repl.session.conversation
    last = len(conversation.turns) - 1
    first = conversation.first + 1
    while first < last:
        count = repl.engine.count(after(conversation, Trimmed(first)).asking(), repl.selection)
        if count is None:
            first = (conversation.first + last + 1) // 2
            break
        if count <= context * TRIM_TO:
            break
        first += 1
    repl.session.record(Trimmed(min(first, last)))
    left_out = repl.session.conversation.first - conversation.first
    repl.screen.note(f"(the {left_out} oldest turns are left out from now on)")
