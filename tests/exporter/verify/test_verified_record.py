from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter.core.events import silent
from exporter.core.paths import data_folder
from exporter.verify.after import kept_or_rejected
from exporter.verify.verification import Check, Verification
from exporter.verify.verified_record import read_record, record, record_path
from tests.support.upload_stage import write_gguf, write_split


def verification(path: Path, *problems: str) -> Verification:
    checks = (Check("weights", problems, "12 tensors"), Check("logits", (), "none", judged=False))
    return Verification(path, checks, 0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m-Q8_0.gguf")


def test_a_record_has_what_was_found(path: Path):
    record(verification(path))

    found = read_record((path,))
    assert [(c.name, c.verdict, c.detail) for c in found.checks] == [
        ("weights", "right", "12 tensors"),
        ("logits", "not judged", "none"),
    ]
    assert found.problems == []


def test_the_last_verification_counts(path: Path):
    record(verification(path, "blk.0 differs"))
    record(verification(path))

    assert read_record((path,)).problems == []


def test_an_export_records_a_file_that_it_rejects(path: Path):
    kept_or_rejected(verification(path, "blk.0 differs"), silent)

    rejected = path.with_name(f"{path.name}.rejected")
    assert read_record((rejected,)).problems == ["blk.0 differs"]


def test_a_record_is_of_all_files_of_a_split_model(tmp_path: Path):
    paths = write_split(tmp_path, "big-Q8_0")
    record(verification(paths[0]))

    assert read_record(paths) is not None
    write_gguf(paths[2], size=8192)
    assert read_record(paths) is None


def test_a_touched_file_has_no_record(path: Path):
    record(verification(path))
    os.utime(path, ns=(1, 1))

    assert read_record((path,)) is None


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "checks": [{}]}'])
def test_a_damaged_record_is_none(path: Path, content: str):
    record(verification(path))
    record_path((path,)).write_text(content)

    assert read_record((path,)) is None


def test_a_folder_that_cannot_be_written_loses_no_verification(path: Path):
    folder = data_folder(os.environ)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")

    record(verification(path))

    assert read_record((path,)) is None
