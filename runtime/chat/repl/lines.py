"""Reads the user's input: with a line editor on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runtime.chat.repl.typed_ahead import TypedAhead

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

BLOCK = '"""'
CONTINUED = "... "
PRIVATE_FILE = 0o600  # only this user reads and writes it
HISTORY_MAX = 1 << 20  # bytes; a larger file loses its older half
Completions = Callable[[str], "Sequence[str] | None"]
"""Maps the text so far to the words that may follow its last space; None for paths."""


class Lines(Protocol):
    """A source of messages."""

    def read(self, prompt: str) -> str:
        """Read a message. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""
        ...

    def choose(self, prompt: str) -> str:
        """Ask for a short answer, which does not go into the history."""
        ...

    def lent(self) -> AbstractContextManager[None]:
        """Leave the terminal to another program in the block."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found."""
        ...


class PlainLines:
    """Reads lines from standard input, for dumb terminals."""

    def read(self, prompt: str) -> str:
        text = self.line(prompt)
        while is_open_block(text):
            text += "\n" + self.line(CONTINUED)
        return without_block(text)

    def choose(self, prompt: str) -> str:
        return self.line(prompt).strip()

    def lent(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Change nothing: the terminal's modes are its own."""

    def line(self, prompt: str) -> str:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


class EditedLines:
    """A line editor: history, completion, blocks, paste, $EDITOR.

    Keys that are typed between two prompts wait for the next message: `choose` does not take them
    for the answer to a question that was not there yet.
    """

    def __init__(self, history: Path | None, completions: Completions) -> None:
        """Keep the history in a file that only this user may read; None: in memory.

        Raises OSError if the file cannot be written.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import ThreadedCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.shortcuts import CompleteStyle

        self.session: PromptSession[str] = PromptSession(
            history=open_history(history) if history else InMemoryHistory(),
            key_bindings=key_bindings(),
            completer=ThreadedCompleter(completer(completions)),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            multiline=True,
            prompt_continuation=CONTINUED,
            mouse_support=False,
            tempfile_suffix=".md",
        )
        self.ahead = TypedAhead(self.session.input, self.session.output)

    def read(self, prompt: str) -> str:
        self.ahead.collect()
        self.ahead.give_back()
        try:
            return without_block(self.session.prompt(prompt))
        finally:
            self.ahead.begin()

    def choose(self, prompt: str) -> str:
        from prompt_toolkit import PromptSession

        self.ahead.collect()
        asking: PromptSession[str] = PromptSession()
        try:
            return asking.prompt(prompt).strip()
        finally:
            self.ahead.begin()

    @contextmanager
    def lent(self) -> Iterator[None]:
        self.ahead.collect()
        self.ahead.end()
        try:
            yield
        finally:
            self.ahead.begin()

    def close(self) -> None:
        self.ahead.end()


def is_open_block(text: str) -> bool:
    """Whether a block of several lines has begun and not ended."""
    bare = text.strip()
    return bare.startswith(BLOCK) and not (len(bare) > len(BLOCK) and bare.endswith(BLOCK))


def without_block(text: str) -> str:
    """The message without the quotes around a block; lone surrogates become `?`."""
    bare = text.strip()
    if bare.startswith(BLOCK) and not is_open_block(bare):
        bare = bare[len(BLOCK) :].removesuffix(BLOCK).strip("\n")
    return bare.encode("utf-8", errors="replace").decode()


def open_history(path: Path) -> FileHistory:
    from prompt_toolkit.history import FileHistory

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE))
    path.chmod(PRIVATE_FILE)
    if path.stat().st_size > HISTORY_MAX:
        halve(path)
    return FileHistory(os.fspath(path))


def halve(path: Path) -> None:
    """Drop the older half; an entry begins with a line `# TIME`, after an empty line."""
    data = path.read_bytes()
    cut = data.find(b"\n# ", len(data) // 2)
    shorter = path.with_name(f".{path.name}.new")
    with os.fdopen(
        os.open(shorter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "wb"
    ) as f:
        f.write(data[cut:] if cut >= 0 else b"")
    shorter.replace(path)


def key_bindings() -> KeyBindings:
    """Enter sends, or continues a block; Alt-Enter begins a line; Ctrl-G opens $EDITOR."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer: Buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-g")
    def open_editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @keys.add("c-c")
    def drop(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def completer(completions: Completions) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Words(Completer):
        """Completes the words that `completions` gives, or paths where it gives None."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            word = text.rpartition(" ")[2]
            words = completions(text)
            if words is None:
                yield from paths.get_completions(Document(word), complete_event)
                return
            for found in words:
                if found.startswith(word):
                    yield Completion(found, start_position=-len(word))

    return Words()
