"""Texts side by side on a terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any  # Any: rich's own options

from typing_extensions import Self

from exporter.core.terminal_text import without_controls
from runtime.terminal.markdown import GAP, live

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NARROWEST = 20  # columns of text that are still readable side by side
ABOVE = 2  # lines of the frame above the texts


class Columns:
    """Texts side by side that grow while they are drawn.

    They grow on the alternate screen: there, no size that the window takes meanwhile leaves
    pieces of an earlier frame behind. The whole texts are printed in its place at the end.
    """

    def __init__(self, heads: Sequence[str], title: str = "") -> None:
        """Name the columns; the title is shown above them while they grow."""
        self.heads = [without_controls(head) for head in heads]
        self.title = " ".join(without_controls(title).split())
        self.texts = [""] * len(heads)
        self.live = live(renderable=self, screen=True)
        self.console = self.live.console

    def __enter__(self) -> Self:
        self.live.start(refresh=True)
        self.before = signal.getsignal(signal.SIGTSTP)
        if self.before == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self.suspend)
        return self

    def suspend(self, *_: object) -> None:
        """Leave the shell its own screen after Ctrl-Z, and draw again after `fg`."""
        self.leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self.suspend)
        self.live.start(refresh=True)

    def leave(self) -> None:
        """Return to the usual screen."""
        from rich.control import Control

        with self.live._lock:  # noqa: SLF001 - else rich's thread may draw in between
            if self.console.is_alt_screen:
                # a terminal without an alternate screen would keep the last frame
                self.console.control(Control.home(), Control.clear())
            self.live.stop()

    def __exit__(self, *exc: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTSTP, self.before)
        self.leave()
        if fits(self.console.width, len(self.heads)):
            self.console.print(self.table(self.texts))
            return
        for head, text in zip(self.heads, self.texts, strict=True):  # the window is narrower now
            self.console.print(head, style="bold", markup=False)
            self.console.print(text.strip(), markup=False)

    def write(self, number: int, text: str) -> None:
        """Append text to a column."""
        self.texts[number] += without_controls(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a frame that fits on the screen: title, heads and the end of each text."""
        from rich.text import Text

        yield Text(self.title, style="dim", no_wrap=True, overflow="ellipsis")
        height = max(console.height - ABOVE, 1)
        yield self.table([Tail(text, height) for text in self.texts])

    def table(self, cells: Sequence[str | Tail]) -> Table:
        """The heads above the cells."""
        from rich.table import Table
        from rich.text import Text

        is_frame = any(isinstance(cell, Tail) for cell in cells)
        style: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if is_frame else {}
        table = Table.grid(expand=True, padding=(0, GAP, 0, 0))
        for _ in self.heads:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(head, style="bold", **style) for head in self.heads))
        table.add_row(*(Text(c.strip()) if isinstance(c, str) else c for c in cells))
        return table


@dataclass(frozen=True, slots=True)
class Tail:
    """The last lines of a text that fit into `height` lines of a cell."""

    text: str
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        room = options.max_width * self.height  # characters; a line has at most its width
        lines = Text(self.text.strip()[-room:]).wrap(console, options.max_width, overflow="fold")
        yield Text("\n").join(lines[-self.height :])


def fits(width: int, count: int) -> bool:
    """Whether `count` columns are readable in a window of `width` columns."""
    return width >= NARROWEST * count
