"""Changes of modules that may not be imported yet."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from exporter.core.on_import import on_import


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A package's module that is not imported."""
    (tmp_path / "changing").mkdir()
    (tmp_path / "changing" / "__init__.py").write_text("")
    (tmp_path / "changing" / "inner.py").write_text("loud = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "changing.inner"
    for name in ("changing.inner", "changing"):
        sys.modules.pop(name, None)


def quiet(module):
    module.loud = False

    def undo():
        module.loud = True

    return undo


def test_a_module_is_changed_when_it_is_imported_and_not_afterwards(module):
    before = list(sys.meta_path)
    with on_import(module, quiet):
        assert module not in sys.modules
        found = importlib.import_module(module)
        assert not found.loud
    assert found.loud
    assert sys.meta_path == before


def test_an_imported_module_is_changed_at_once(module):
    found = importlib.import_module(module)
    with on_import(module, quiet):
        assert not found.loud
    assert found.loud


def test_a_module_that_nobody_imports_stays_unimported(module):
    before = list(sys.meta_path)
    with on_import(module, quiet):
        pass
    assert module not in sys.modules
    assert sys.meta_path == before
    assert importlib.import_module(module).loud


def test_two_changes_of_one_module_are_both_made(module):
    def named(found):
        found.name = "changed"
        return lambda: delattr(found, "name")

    with on_import(module, quiet), on_import(module, named):
        found = importlib.import_module(module)
        assert (found.loud, found.name) == (False, "changed")
    assert found.loud
    assert not hasattr(found, "name")


@pytest.mark.trained
@pytest.mark.lasting
def test_a_folders_code_is_refused_though_transformers_comes_later(tmp_path):
    code = (
        "import sys\n"
        "from exporter.core.errors import UnsupportedError\n"
        "from exporter.inputs.own_code import no_code_run\n"
        "with no_code_run():\n"
        "    assert 'transformers' not in sys.modules\n"
        "    from transformers.dynamic_module_utils import get_cached_module_file\n"
        "    try:\n"
        "        get_cached_module_file('folder', 'own.py')\n"
        "    except UnsupportedError as error:\n"
        "        print(error.message)\n"
        "from transformers import dynamic_module_utils\n"
        "assert dynamic_module_utils.get_cached_module_file is not get_cached_module_file\n"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "`folder` needs custom Python code (`own.py`)" in done.stdout
