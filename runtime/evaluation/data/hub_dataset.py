"""Hub datasets: the files of one split, through our own downloader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from exporter.core.errors import InputError
from exporter.core.events import Report, silent
from exporter.hub.pull import Pulled, PullRequest, pull
from exporter.hub.pull_plan import FileFilter
from exporter.hub.repo_refs import Ref, parse_ref
from runtime.evaluation.data.front_matter import readme_settings, text_of_file
from runtime.evaluation.data.split_files import find_split

NAME = re.compile(
    r"(?:https?://\S+|(?:datasets/)?[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?::[\w.+-]+)?)", re.ASCII
)
README = "README.md"


class Fetch(Protocol):
    """Downloads as `exporter.hub.pull.pull` does."""

    def __call__(
        self, request: PullRequest, *, dry_run: bool = False, report: Report = silent
    ) -> Pulled: ...


def is_dataset_name(source: str) -> bool:
    """Whether a source reads as ORG/NAME[@REVISION][:CONFIG] or a link, not as a path."""
    return NAME.fullmatch(source) is not None and not source.startswith((".", "/", "~"))


def dataset_ref(source: str) -> tuple[Ref, str | None]:
    """The repo of ORG/NAME[@REVISION][:CONFIG], and the configuration. Raises InputError."""
    if "://" in source:
        return parse_ref(source, repo_type="dataset"), None
    name, _, config = source.partition(":")
    return parse_ref(name, repo_type="dataset"), config or None


def pull_dataset(
    source: str,
    split: str | None,
    *,
    request: PullRequest,
    fetch: Fetch = pull,
    report: Report = silent,
) -> Path:
    """Download the files of a dataset's split, and return their folder.

    `request`: where and how to download; its repo and files are replaced. Raises InputError for a
    split or configuration that is absent, and DownloadError, OutputError and SpaceError.
    """
    ref, config = dataset_ref(source)
    whole = replace(request, ref=replace(ref, file=None, folder=None), choice=FileFilter())
    planned = fetch(whole, dry_run=True, report=report)
    paths = [file.path for file in planned.plan.files]
    notes = tuple(path for path in paths if path in (README, "dataset_infos.json"))
    settings: Mapping[str, Any] = {}
    if notes:
        chosen = replace(whole, choice=FileFilter(notes), known=planned.plan)
        folder = fetch(chosen, report=report).folder
        settings = readme_settings(text_of_file(folder / README))
    if ref.file:
        files: tuple[str, ...] = (ref.file,)
    else:
        try:
            files = find_split(paths, settings, split, config).files
        except InputError as error:
            raise InputError(f"{source}: {error.message}", hint=error.hint) from error
    chosen = replace(whole, choice=FileFilter((*notes, *files)), known=planned.plan)
    return fetch(chosen, report=report).folder
