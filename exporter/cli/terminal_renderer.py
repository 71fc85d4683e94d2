"""Renders progress and tables; the only file of the command line that uses rich.

Results go to stdout, everything else to stderr. rich is imported on a terminal only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from typing_extensions import Self, assert_never

from exporter.core.event_lines import event_line, wants_lines
from exporter.core.events import Event, Note, Progress, Report, Step, Warn
from exporter.core.paths import size_text

if TYPE_CHECKING:
    import rich.progress

CONTROLS = re.compile("[\x7f-\x9f]")  # JSON leaves these unescaped, and terminals obey some
NARROW = 70  # columns below which a bar does not fit beside its numbers
PLAIN_EVERY = 0.1  # share of a task between two plain lines
JSON_EVERY_S = 0.1  # between two lines about one task


@contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Report]:
    """A report for the library's verbs: bars on a terminal, lines elsewhere, warnings always.

    A decant that runs this one shows the events itself, and asks for them as lines of JSON.
    """
    if wants_lines(os.environ):
        yield EventLines().report
    elif quiet:
        yield warnings_only
    elif is_fancy():
        with Bars() as bars:
            yield bars.report
    else:
        yield Lines().report


def is_fancy() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def warnings_only(event: Event) -> None:
    if isinstance(event, Warn):
        click.echo(f"warning: {event.message}", err=True)


class Lines:
    """Progress as plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self.shown: dict[str, float] = {}
        self.lock = threading.Lock()

    def report(self, event: Event) -> None:
        with self.lock:
            match event:
                case Step():
                    click.echo(event.message, err=True)
                case Note():
                    click.echo(f"  {event.message}", err=True)
                case Warn():
                    click.echo(f"warning: {event.message}", err=True)
                case Progress():
                    self.progress(event)
                case _:
                    assert_never(event)

    def progress(self, event: Progress) -> None:
        if not event.total:
            return
        part, shown = event.done / event.total, self.shown.get(event.task, 0.0)
        if int(part / PLAIN_EVERY) > int(shown / PLAIN_EVERY):
            self.shown[event.task] = part
            detail = f", {event.detail}" if event.detail else ""
            click.echo(
                f"  {event.task}: {part:.0%} of {amount(event.total, event)}{detail}", err=True
            )


class EventLines:
    """Events as lines of JSON; of a task's progress, as much as a reader can see."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.lock = threading.Lock()

    def report(self, event: Event) -> None:
        with self.lock:
            if isinstance(event, Progress) and event.done != event.total:
                now = time.monotonic()
                if now - self.sent.get(event.task, -JSON_EVERY_S) < JSON_EVERY_S:
                    return
                self.sent[event.task] = now
            click.echo(event_line(event), err=True)


class Bars:
    """Progress as one live bar per task, with speed and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True, highlight=False)
        bar = (BarColumn(bar_width=12),) if self.console.width >= NARROW else ()
        self.bars: rich.progress.Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            *bar,
            TimeRemainingColumn(),  # before the text, which a narrow terminal cuts off
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.tasks: dict[str, rich.progress.TaskID] = {}
        self.started: dict[str, float] = {}
        self.first: dict[str, int] = {}
        """Progress of a task at its first event; only later progress has a speed."""

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def report(self, event: Event) -> None:
        from rich.markup import escape

        match event:
            case Step():
                self.finish_all()
                self.console.print(f"[bold]{escape(event.message)}[/bold]")
            case Note():
                self.console.print(f"  {escape(event.message)}")
            case Warn():
                self.console.print(f"[yellow]warning:[/yellow] {escape(event.message)}")
            case Progress():
                self.progress(event)
            case _:
                assert_never(event)

    def progress(self, event: Progress) -> None:
        if event.task not in self.tasks:
            self.tasks[event.task] = self.bars.add_task(
                shortened(event.task, self.console.width // 4 + 1), total=event.total, text=""
            )
            self.started[event.task], self.first[event.task] = time.monotonic(), event.done
        self.bars.update(
            self.tasks[event.task], completed=event.done, total=event.total, text=self.text(event)
        )
        if event.done == event.total and len(self.tasks) > 1:  # finished tasks make room for others
            self.bars.remove_task(self.tasks.pop(event.task))

    def text(self, event: Progress) -> str:
        done, total = amount(event.done, event), amount(event.total or 0, event)
        text = f"{done} of {total}" if event.total else done
        if self.console.width < NARROW:
            return text
        seconds = time.monotonic() - self.started[event.task]
        if event.unit == "bytes" and seconds > 1:
            text += f", {size_text((event.done - self.first[event.task]) / seconds)}/s"
        return f"{text}, {event.detail}" if event.detail else text

    def finish_all(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


def shortened(task: str, width: int) -> str:
    """A task's name in a number of columns: the end of a path, cut after its beginning."""
    name = task if len(task) <= width else task.rpartition("/")[2]
    return name if len(name) <= width else f"{name[: width - 1]}…"


def amount(count: int, event: Progress) -> str:
    return size_text(count) if event.unit == "bytes" else f"{count} {event.unit}"


def print_json(value: object) -> None:
    """Print a command's result for machines, on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    click.echo(CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: drawn on a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, one pair per line, on stdout."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        click.echo(f"{name:<{width}}  {value}")
