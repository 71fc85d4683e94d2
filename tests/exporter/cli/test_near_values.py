"""Every command that takes a name offers the near ones for a mistyped one."""

from __future__ import annotations

import pytest

from exporter.cli.app import run
from tests.support.raw import write_adapter

WITH_TORCH = pytest.mark.trained
"""The command says first that a package is missing."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an adapter, a text and a store."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "my-lora-Q4_K_M.gguf").write_bytes(b"")
    write_adapter(tmp_path / "pirate")
    (tmp_path / "questions.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.setenv("DECANT_STORE", str(store))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "near"),
    [
        ("chat my-lroa -p hi", "my-lora"),
        ("serve my-lroa", "my-lora"),
        pytest.param("verify my-lroa --base x", "my-lora", marks=WITH_TORCH),
        ("inspect my-lroa", "my-lora"),
        ("rm my-lroa", "my-lora"),
        ("rm my-lora:Q4_K_N", "Q4_K_M"),
        ("tokens my-lroa text", "my-lora"),
        ("eval my-lroa --data questions.jsonl", "my-lora"),
        ("chat ./modle.gguf -p hi", "`model.gguf`"),
        ("tokens ./modle.gguf hi", "`model.gguf`"),
        ("eval my-lora --data ./question.jsonl", "`questions.jsonl`"),
        pytest.param("export ./pirat -q Q8_0", "`./pirate`", marks=WITH_TORCH),
        pytest.param("export pirate -q Q4KM", "Q4_K_M", marks=WITH_TORCH),
        ("export pirate --to gguff", "gguf"),
        ("serve --limit promt=3", "prompts"),
        ("serve --config confg.toml", ""),
        ("chat --resume x -p hi", ""),
    ],
)
def test_a_mistyped_value_is_answered_with_a_near_one(place, command, near, capsys):
    assert run(command.split()) in (2, 3)
    hint = capsys.readouterr().err.partition("hint: ")[2]

    if near:
        assert "did you mean" in hint
        assert near in hint
