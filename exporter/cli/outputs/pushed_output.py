"""`decant export --push ORG/NAME`: publishes what an export has written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from exporter.cli.common_options import store
from exporter.cli.outputs.output_format import ExportOptions
from exporter.cli.push_options import (
    PushOptions,
    push_models,
    push_request,
    pushed_value,
    show_pushed,
)
from exporter.cli.terminal_renderer import print_json, reporting


@contextmanager
def then_json(value: Mapping[str, object], *, as_json: bool) -> Iterator[None]:
    """Print JSON's values after the block, which may add some.

    After an error or Ctrl-C, too: the files are complete, and --json must list them.
    """
    try:
        yield
    finally:
        if as_json:
            print_json(value)


@dataclass(frozen=True, slots=True)
class PushAfter:
    """The push at the end of an export; token and repo are checked before the export begins."""

    options: PushOptions
    dry_run: bool
    as_json: bool
    quiet: bool

    def of(self, paths: Sequence[Path]) -> dict[str, object]:
        """Push GGUFs, or the folder with them, and print the result. Returns JSON's values.

        After a dry run there is no file yet: only the repo is named. Raises the errors of a push.
        """
        from exporter.share.shared_files import shared_models

        if self.dry_run:
            if not self.as_json:
                click.echo(f"would push to {self.options.repo}", err=True)
            return {"repo": self.options.repo, "dry_run": True}
        with reporting(quiet=self.quiet) as report:
            models = shared_models([str(path) for path in paths], store(), report=report)
            pushed = push_models(self.options, models, dry_run=False, report=report)
        if not self.as_json:
            show_pushed(pushed, dry_run=False)
        return pushed_value(pushed, dry_run=False)


def push_after(options: ExportOptions) -> PushAfter | None:
    """The push that --push asks for; None without it.

    Asks the hub for the repo, unless it is a dry run. Raises the errors of a push that show before
    there is a file.
    """
    from exporter.hub.upload.push_files import refuse_ahead

    if options.push is None:
        return None
    wanted = PushOptions(options.push, options.private, trusted=options.trusted)
    request = push_request(wanted)
    if not options.dry_run:
        with reporting(quiet=options.quiet) as report:
            refuse_ahead(request, report=report)
    return PushAfter(wanted, options.dry_run, options.as_json, options.quiet)
