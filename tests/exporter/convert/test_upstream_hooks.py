"""The table of what decant does with llama.cpp's Python, against the build's own source."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.convert.upstream_hooks import TABLE, Hook, find_missing, upstream_hooks

PACKAGE = Path(__file__).parents[3] / "exporter"


@pytest.mark.llamacpp
def test_every_line_of_the_table_is_in_the_build(toolchain):
    assert find_missing(toolchain.source) == []


@pytest.mark.llamacpp
def test_a_line_that_upstream_changes_is_named(toolchain, tmp_path):
    for row in TABLE:
        (tmp_path / row.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toolchain.source / row.file, tmp_path / row.file)
    changed = tmp_path / "conversion" / "qwen.py"
    changed.write_text(changed.read_text().replace("_is_qwen3_reranker", "_is_reranker"))
    (tmp_path / "conversion" / "gemma.py").unlink()

    assert {row.file for row in find_missing(tmp_path)} == {
        "conversion/qwen.py",
        "conversion/gemma.py",
    }


def test_every_row_names_a_module_that_is_there():
    for row in TABLE:
        folder = PACKAGE if "/" in row.where else PACKAGE / "convert"
        assert (folder / f"{row.where}.py").is_file(), row


def test_hooks_last_as_long_as_their_block():
    class Above:
        def set_vocab(self):
            return "above"

    class Owner(Above):
        lists = staticmethod(lambda: "own")

    module = SimpleNamespace(quantize="original")
    hooks = [Hook(Owner, {"lists": 1, "set_vocab": 2}), Hook(module, {"quantize": 3})]

    with pytest.raises(KeyError), upstream_hooks(*hooks, Hook(module, {"quantize": 4})):
        assert (Owner.lists, Owner.set_vocab, module.quantize) == (1, 2, 4)
        raise KeyError

    assert (Owner.lists(), Owner().set_vocab(), module.quantize) == ("own", "above", "original")
    assert "set_vocab" not in vars(Owner)
