from __future__ import annotations

import importlib
import sys

import pytest

from exporter.core.import_hooks import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that nobody has imported, `late_one`."""
    (tmp_path / "late_one.py").write_text("word = 'as written'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late_one"
    sys.modules.pop("late_one", None)


def change(module):
    module.word = "changed"

    def undo():
        module.word = "undone"

    return undo


def test_a_module_is_changed_before_anybody_sees_it(module):
    with when_imported(module, change):
        assert module not in sys.modules
        assert importlib.import_module(module).word == "changed"
    assert sys.modules[module].word == "undone"


def test_one_that_was_imported_is_changed_at_once(module):
    found = importlib.import_module(module)
    with when_imported(module, change):
        assert found.word == "changed"
    assert found.word == "undone"


def test_one_that_is_imported_later_is_left_alone(module):
    before = list(sys.meta_path)
    with when_imported(module, change):
        pass
    assert importlib.import_module(module).word == "as written"
    assert sys.meta_path == before


def test_the_module_is_what_it_is_without(module):
    with when_imported(module, change):
        found = importlib.import_module(module)
    assert found.__spec__.loader is found.__loader__
    assert found.__file__.endswith("late_one.py")
    assert importlib.reload(found).word == "as written"


def test_two_wait_for_one_module(module):
    with when_imported(module, change), when_imported(module, change):
        assert importlib.import_module(module).word == "changed"
    assert sys.modules[module].word == "undone"
