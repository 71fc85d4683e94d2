"""Keeps the keys that are typed between prompts, and does not show them."""

from __future__ import annotations

import select
import signal
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPress
    from prompt_toolkit.output import Output

INPUT, LOCAL = 0, 3  # the flags' places in termios.tcgetattr's list


class TypedAhead:
    """The keys of a terminal between two prompts.

    From `begin` to `end`, the terminal does not echo keys and does not collect lines: an echo
    would move the cursor below an answer that is redrawn. Ctrl-C still sends its signal.
    """

    def __init__(self, keys: Input, output: Output) -> None:
        self.input, self.output = keys, output
        self.kept: list[KeyPress] = []
        self.before: list[Any] | None = None  # termios' own form
        """The terminal's modes before `begin`; None outside."""
        self.is_between = False
        """Whether no prompt is open."""

    def begin(self) -> None:
        """Stop the echo; without effect on a terminal that is gone."""
        self.is_between = True
        signal.signal(signal.SIGCONT, self.go_on)  # the shell has set its own modes
        with suppress(termios.error, OSError):
            modes = termios.tcgetattr(self.input.fileno())
            if self.before is None:
                self.before = modes.copy()
            modes[INPUT] &= ~termios.ICRNL  # Enter is what the line editor knows as Enter
            modes[LOCAL] &= ~(termios.ECHO | termios.ICANON)
            modes[LOCAL] |= termios.NOFLSH  # Ctrl-C does not drop what was typed before it
            termios.tcsetattr(self.input.fileno(), termios.TCSANOW, modes)
            self.output.enable_bracketed_paste()  # a pasted newline is not an Enter
            self.output.flush()

    def go_on(self, *_: object) -> None:
        """Set the modes again after Ctrl-Z and `fg`."""
        if self.is_between:
            self.begin()

    def end(self) -> None:
        """Restore the terminal's modes."""
        self.is_between = False
        if self.before is None:
            return
        with suppress(termios.error, OSError):
            self.output.disable_bracketed_paste()
            self.output.flush()
            termios.tcsetattr(self.input.fileno(), termios.TCSANOW, self.before)
        self.before = None

    def collect(self) -> None:
        """Take the keys that wait, also those that the last prompt did not use."""
        from prompt_toolkit.input.typeahead import get_typeahead
        from prompt_toolkit.keys import Keys

        self.is_between = False
        found = get_typeahead(self.input)
        with suppress(OSError):
            while not self.input.closed and select.select([self.input.fileno()], [], [], 0)[0]:
                found += self.input.read_keys()
        self.kept += [key for key in found if key.key != Keys.CPRResponse]

    def give_back(self) -> None:
        """Let the next prompt read the kept keys."""
        from prompt_toolkit.input.typeahead import store_typeahead

        store_typeahead(self.input, self.kept)
        self.kept = []
