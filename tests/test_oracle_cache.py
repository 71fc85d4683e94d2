"""What the reference tools made is used again for the same inputs, and for no others."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import oracle_cache
from tests.support.oracle_cache import recall

BUILD = SimpleNamespace(folder=Path("commit-cpu"))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Recalls a tool's output for a source, and says how often the tool has run."""
    monkeypatch.setattr(oracle_cache, "oracle_folder", lambda: tmp_path / "oracles")
    runs = []

    def call(source: Path, *options: object, build: object = BUILD) -> tuple[bytes, int]:
        output = tmp_path / "output"
        output.unlink(missing_ok=True)

        def make() -> None:
            runs.append(1)
            output.write_bytes(b"of " + source.read_bytes())

        recall(output, make, build, source, *options)
        return output.read_bytes(), len(runs)

    return call


def test_the_same_inputs_are_made_once(made, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"one")

    assert made(source, "Q4_K_M") == (b"of one", 1)
    assert made(source, "Q4_K_M") == (b"of one", 1)


@pytest.mark.parametrize("changed", ["contents", "options", "build", "name"])
def test_other_inputs_are_made_anew(made, tmp_path, changed):
    source = tmp_path / "source"
    source.write_bytes(b"one")
    made(source, "Q4_K_M")
    other = tmp_path / "other"
    other.write_bytes(b"one")
    if changed == "contents":
        source.write_bytes(b"two")

    _, runs = made(
        other if changed == "name" else source,
        "Q5_K_M" if changed == "options" else "Q4_K_M",
        build=SimpleNamespace(folder=Path("next")) if changed == "build" else BUILD,
    )

    assert runs == 2


def test_the_files_used_least_recently_go_first(made, tmp_path, monkeypatch):
    monkeypatch.setattr(oracle_cache, "NBYTES_MAX", 14)  # two outputs of 6 bytes
    sources = [tmp_path / name for name in ("first", "next", "last")]
    for age, source in enumerate(sources):
        source.write_bytes(b"abc")
        made(source)
        newest = max((tmp_path / "oracles").iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1000 + age, 1000 + age))

    assert made(sources[2])[1] == 3
    assert made(sources[1])[1] == 3
    assert made(sources[0])[1] == 4
