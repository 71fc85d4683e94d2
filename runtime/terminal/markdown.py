"""Markdown and columns on a terminal; with the command line's renderer the only users of rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from exporter.core.terminal_text import without_controls

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

FENCES = ("```", "~~~")
PER_SECOND = 12  # redraws
GAP = 2  # columns between columns


def live(*, stderr: bool = False, **options: Any) -> Live:  # rich's own options
    """A place on the terminal that is drawn over until what is final is printed there."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, stderr=stderr)
    return Live(console=console, transient=True, refresh_per_second=PER_SECOND, **options)


class MarkdownStream:
    """An answer, rendered while it comes.

    What is complete is printed for good, and only the last block is drawn over, so that an
    answer longer than the screen scrolls.
    """

    def __init__(self) -> None:
        """Draw nothing until entered."""
        self.live = live(vertical_overflow="visible")
        self.console = self.live.console
        self.text = ""

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        from rich.markdown import Markdown

        self.live.stop()
        if self.text.strip():
            self.console.print(Markdown(self.text))

    def write(self, text: str) -> None:
        from rich.markdown import Markdown

        done, self.text = split_complete(self.text + without_controls(text))
        if done.strip():
            self.console.print(Markdown(done))
            self.console.print()
        self.live.update(Markdown(self.text))


def split_complete(text: str) -> tuple[str, str]:
    """The blocks that later text cannot change, and the rest: cut after a blank line.

    A blank line inside a fence or a list's indentation does not end its block.
    """
    lines = text.splitlines(keepends=True)
    fence, cut = "", 0
    for number, line in enumerate(lines):
        bare = line.strip()
        if not fence and bare.startswith(FENCES):
            fence = bare[:3]
        elif fence and bare.startswith(fence):
            fence = ""
        ends = not bare and not fence and number + 1 < len(lines)
        if ends and not lines[number + 1].startswith((" ", "\t", "-", "*", "+")):
            following = lines[number + 1]
            cut = number + 1 if following.strip() and not following[0].isdigit() else cut
    return "".join(lines[:cut]), "".join(lines[cut:])


class Columns:
    """Texts side by side that grow while they are drawn."""

    def __init__(self, heads: Sequence[str]) -> None:
        """One column a head."""
        self.heads = heads
        self.texts = [""] * len(heads)
        self.live = live(get_renderable=self.table, vertical_overflow="ellipsis")
        self.console = self.live.console

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()
        self.console.print(self.table())

    def write(self, number: int, text: str) -> None:
        """More of the text in a column."""
        self.texts[number] += without_controls(text)

    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(expand=True, padding=(0, GAP, 0, 0))
        for _ in self.heads:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(without_controls(head), style="bold") for head in self.heads))
        table.add_row(*(Text(text.strip()) for text in self.texts))
        return table


class Board:
    """Tables below each other on standard error, drawn over when there is news."""

    def __init__(self) -> None:
        """Draw nothing until entered."""
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
        """Each table with its heads, empty ones left out; then the lines."""
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
