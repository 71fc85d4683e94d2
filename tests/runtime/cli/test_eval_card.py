from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.paths import evaluations_folder
from runtime.cli.eval_card import newest_section
from tests.support.evaluations import cases, evaluation
from tests.support.stored_reports import stored

SHA256 = "ab" * 32


def report(name: str, sha256: str = SHA256, **changed: object) -> Path:
    first, *others = evaluation(cases(count=20)).models
    models = (replace(first, sha256=sha256), *others)
    return stored(evaluations_folder(os.environ), name, models=models, **changed)


def test_the_newest_report_of_a_file_is_a_section():
    report("old", began="2026-01-01T10:00:00+0000", data="old")
    report("new", began="2026-02-01T10:00:00+0000", data="new")

    section, what = newest_section({SHA256, "other"})

    assert section.startswith("## Evaluation\n")
    assert "Measured on new" in section
    assert what == "of 2026-02-01 on new"


def test_reports_of_other_files_and_stopped_ones_do_not_count():
    report("other", sha256="cd" * 32)
    report("stopped", is_complete=False)
    report("unknown", sha256="")

    assert newest_section({SHA256}) is None


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("/home/me/private/val.jsonl", "val.jsonl"),
        ("../val.jsonl", "val.jsonl"),
        ("data/val.csv", "val.csv"),
        ("org/dataset", "org/dataset"),
    ],
)
def test_no_folder_of_this_machine_is_in_the_section(data: str, shown: str):
    report("one", data=data)

    section, what = newest_section({SHA256})

    assert f"Measured on {shown}".replace("/", "/") in section.replace("\\", "")
    assert what.endswith(f" on {shown}")
    assert data == shown or data not in section + what
