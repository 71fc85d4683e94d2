"""The section of a model card for the newest evaluation of certain files, for `decant push`."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

from exporter.core.paths import evaluations_folder
from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.report.card_section import model_card
from runtime.evaluation.report.report_folder import list_reports

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")
"""Endings of data that is a file of this machine, and no dataset of a hub."""


def newest_section(hashes: AbstractSet[str]) -> tuple[str, str] | None:
    """The section, and a few words on the evaluation; None if no report is of such a file.

    hashes: sha256 of the files. A report counts only if it is complete.
    """
    reports, _ = list_reports(evaluations_folder(os.environ))
    for listed in reports:
        found = listed.evaluation
        if found.is_complete and any(model.sha256 in hashes for model in found.models):
            public = without_folders(found)
            return model_card(public), f"of {found.began[:10]} on {public.data.name}"
    return None


def without_folders(evaluation: Evaluation) -> Evaluation:
    """The evaluation with the data's name instead of its path on this machine."""
    data = evaluation.data
    path = Path(data.name)
    is_path = data.name.startswith((".", "/", "~")) or data.name.count("/") > 1 or path.exists()
    is_path |= path.suffix.lower() in ENDINGS
    if not is_path:
        return evaluation
    notes = tuple(note.replace(data.name, path.name) for note in data.notes)
    return replace(evaluation, data=replace(data, name=path.name, notes=notes))
