"""Values that are kept on disk."""

from __future__ import annotations

import os

import pytest

from exporter.core import kept_values
from exporter.core.kept_values import LEFT_S, KeptValues


@pytest.fixture
def values(tmp_path) -> KeptValues:
    return KeptValues(tmp_path / "kept", "things", 3)


def test_a_value_is_found_by_its_origins(values):
    path = values.path(["a", 1])
    assert values.read(path) is None
    values.write(path, {"tokens": ["ä", "\ud800"]})

    assert values.read(values.path(["a", 1])) == {"tokens": ["ä", "\ud800"]}
    assert values.read(values.path(["a1"])) is None
    assert values.read(values.path(["a", 2])) is None


@pytest.mark.parametrize("what", ["code_hash", "version"])
def test_another_decant_or_library_makes_it_anew(values, monkeypatch, what):
    values.write(values.path([]), 1)
    monkeypatch.setattr(kept_values, what, lambda *_: "another")

    assert values.read(values.path([])) is None


def test_a_file_that_was_changed_counts_as_missing(values):
    path = values.path([])
    values.write(path, [1, 2])
    for content in (path.read_bytes()[:-1], path.read_bytes().replace(b"1", b"3"), b"", b"\xff"):
        path.write_bytes(content)
        assert values.read(path) is None


def test_the_oldest_are_deleted_and_so_is_what_killed_processes_left(values):
    paths = [values.path([number]) for number in range(4)]
    for number, path in enumerate(paths[:3]):
        values.write(path, number)
        os.utime(path, (number, number))
    old, new = (values.folder / f".{name}.things.partial" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, new.stat().st_mtime - LEFT_S - 1))
    assert values.read(paths[0]) == 0  # now the newest
    values.write(paths[3], 3)

    assert [values.read(path) for path in paths] == [0, None, 2, 3]
    assert not old.exists()
    assert new.exists()
