"""llama.cpp's bindings: the ctypes layer, without what is built upon it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.llamacpp
CHECKOUT = Path(__file__).parents[3]
HEAVY = {"numpy", "jinja2", "diskcache"}

LOADED = """
import sys
from exporter.llamacpp.toolchain import find_toolchain
from exporter.llamacpp.vocabulary import load_bindings
bindings = load_bindings(find_toolchain())
assert bindings is load_bindings(find_toolchain()) is sys.modules["llama_cpp"]
print(*sys.modules)
"""
UPPER = """
import inspect
from exporter.llamacpp.toolchain import find_toolchain
from exporter.llamacpp.vocabulary import load_bindings
bindings = load_bindings(find_toolchain())
assert not hasattr(bindings, "__wrapped__")
assert "Llama" not in vars(bindings)
from llama_cpp import Llama, LlamaGrammar
import llama_cpp.llama_chat_format
assert inspect.isclass(Llama) and bindings.Llama is Llama and llama_cpp is bindings
assert bindings.__version__ and not hasattr(bindings, "no_such_name")
"""
TWICE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from exporter.core.errors import ToolchainError
from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from exporter.llamacpp.vocabulary import load_bindings
found = find_toolchain()
for folder, library in ((Path(sys.argv[1]), "llama"), (found.folder, "no-such")):
    files = SimpleNamespace(dir=folder, library=lambda _: Path(sys.argv[1], "lib", library))
    try:
        load_bindings(Toolchain(files))
    except ToolchainError as error:
        assert error.hint == "rebuild it with `decant setup --force`"
    else:
        raise AssertionError(library)
    assert "llama_cpp" not in sys.modules
assert load_bindings(found).llama_max_devices()
"""


def run(code: str, *arguments: object) -> str:
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_functions_come_without_what_is_built_upon_them():
    imported = set(run(LOADED).split())

    assert "llama_cpp.llama_cpp" in imported
    assert imported.isdisjoint(HEAVY | {"llama_cpp.llama"})


def test_what_is_built_upon_them_comes_when_somebody_looks_for_it():
    run(UPPER)


def test_what_does_not_load_is_said_and_leaves_nothing_behind(tmp_path):
    """The package is missing, and then the library."""
    run(TWICE, tmp_path)
