"""Markdown and tables on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from exporter.core.terminal_text import without_controls

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable
    from rich.live import Live
    from rich.table import Table

FENCES = ("```", "~~~")
PER_SECOND = 12  # redraws
BLOCK_MAX = 8 << 10  # characters of a rendered block: the time of rendering is not linear
DRAWN_MAX = 2 << 10  # characters of the part that is redrawn
GRACE_S, SHARE = 1, 0.25  # rendering may take GRACE_S seconds + SHARE of the time passed
GAP = 2  # columns between columns


def live(*, stderr: bool = False, **options: Any) -> Live:  # rich's own options
    """A region of the terminal that is redrawn until the final text is printed in its place."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, stderr=stderr)
    return Live(console=console, transient=True, refresh_per_second=PER_SECOND, **options)


class MarkdownStream:
    """An answer that is rendered while it streams.

    Complete blocks are printed once; only the last block is redrawn, so that an answer longer
    than the screen scrolls. A very long block is printed unrendered, and so is text that comes
    faster than it can be rendered: this bounds the time for any text.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        """Store the clocks; drawing begins on entry. busy: CPU time of this thread, in seconds."""
        self.begin_region()
        self.text = ""
        self.clock, self.busy = clock, busy
        self.began = self.spent_s = 0.0
        self.plain: Plain | None = None
        """The state of unrendered output; None while text is rendered."""

    def begin_region(self) -> None:
        """Make a new live region; the old one would erase what is printed now."""
        self.live = live(vertical_overflow="visible")
        self.console = self.live.console

    def __enter__(self) -> Self:
        self.began = self.clock()
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()
        if self.plain is not None:
            self.out(self.text if self.text.endswith("\n") else self.text + "\n")
        elif self.text.strip():
            self.print(self.text)

    def write(self, text: str) -> None:
        text = without_controls(text)
        for at in range(0, len(text), BLOCK_MAX):
            self.write_part(text[at : at + BLOCK_MAX])

    def write_part(self, text: str) -> None:
        self.text += text
        if self.plain is not None:
            shown, self.text = self.plain.taken(self.text, until_over=not self.is_late)
            self.out(shown)
            if not self.plain.is_over or self.is_late:
                return
            self.plain = None
            self.begin_region()
            self.live.start()
        done, self.text = split_complete(self.text)
        if done.strip():
            self.print(done)
            with self.live._lock:  # noqa: SLF001 - as in print
                self.console.print()
        if len(self.text) > BLOCK_MAX or self.is_late:
            self.live.stop()
            self.plain = Plain()
            self.write_part("")
        else:
            self.live.update(self.pending())

    @property
    def is_late(self) -> bool:
        """Whether rendering has taken more than its share of the time."""
        return self.spent_s > GRACE_S + SHARE * (self.clock() - self.began)

    def pending(self) -> ConsoleRenderable:
        """The last block as it is redrawn; if it is long, its end, unrendered."""
        from rich.markdown import Markdown
        from rich.text import Text

        is_short = len(self.text) <= DRAWN_MAX
        return Markdown(self.text) if is_short else Text(self.text[-DRAWN_MAX:])

    def print(self, text: str) -> None:
        from rich.markdown import Markdown

        began = self.busy()
        with self.live._lock:  # noqa: SLF001 - else rich's thread may draw during the print
            self.console.print(Markdown(text))
        self.spent_s += self.busy() - began

    def out(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


class Plain:
    """Lines that are printed unrendered until their block ends."""

    def __init__(self) -> None:
        self.fence = ""
        self.is_over = False

    def taken(self, text: str, *, until_over: bool) -> tuple[str, str]:
        """Split into lines to print and the rest; a rest over BLOCK_MAX is printed, too."""
        *lines, rest = text.split("\n")
        for number, line in enumerate(lines, 1):
            self.fence = fence_after(self.fence, line.strip())
            self.is_over = not (self.fence or line.strip())
            if self.is_over and until_over:
                return "\n".join(lines[:number]) + "\n", "\n".join([*lines[number:], rest])
        shown = "".join(f"{line}\n" for line in lines)
        return (shown + rest, "") if len(rest) > BLOCK_MAX else (shown, rest)


def fence_after(fence: str, bare: str) -> str:
    """The fence that is open after a line, given the one open before it; empty for none.

    bare: the line without white space around it.
    """
    if fence:
        return "" if bare.startswith(fence) else fence
    return bare[:3] if bare.startswith(FENCES) else ""


def split_complete(text: str) -> tuple[str, str]:
    """Split after the last block that later text cannot change, at a blank line.

    A blank line inside a fence or before an indented line or a list item does not end a block.
    """
    lines = text.splitlines(keepends=True)
    fence, cut = "", 0
    for number, line in enumerate(lines):
        bare = line.strip()
        fence = fence_after(fence, bare)
        ends = not bare and not fence and number + 1 < len(lines)
        if ends and not lines[number + 1].startswith((" ", "\t", "-", "*", "+")):
            following = lines[number + 1]
            cut = number + 1 if following.strip() and not following[0].isdigit() else cut
    return "".join(lines[:cut]), "".join(lines[cut:])


class Board:
    """Tables below each other on standard error, redrawn at each update."""

    def __init__(self) -> None:
        self.live = live(stderr=True, auto_refresh=False, vertical_overflow="ellipsis")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def show(
        self,
        tables: Sequence[tuple[tuple[str, ...], Sequence[tuple[str, ...]]]],
        lines: Sequence[str],
    ) -> None:
        """Draw each non-empty table with its heads, then the lines."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Table | Text] = []
        for heads, rows in tables:
            if rows:
                parts += [rows_table(heads, rows), Text("")]
        parts += [Text(without_controls(line), style="dim") for line in lines]
        self.live.update(Group(*parts), refresh=True)


def rows_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_row(*(Text(head, style="bold") for head in heads))
    for row in rows:
        table.add_row(*(Text(without_controls(cell)) for cell in row))
    return table
