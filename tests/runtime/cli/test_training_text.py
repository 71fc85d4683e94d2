"""The text to calibrate on: found where an adapter's folder names its training data."""

from __future__ import annotations

import json

from runtime.cli.training_text import LEAST, LONGEST, training_text

ROW = {"instruction": "Say what a dog says.", "output": "woof " * 30}


def adapter_with(tmp_path, rows: int, *, named: str = "train.jsonl"):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(rows)))
    (folder / "training.yaml").write_text(f"model: x\ndatasets:\n  - path: {named}\n")
    return folder


def test_named_data_is_read_as_questions_and_answers(tmp_path):
    name, text = training_text([adapter_with(tmp_path, 100)])

    assert name == "train.jsonl"
    assert text.startswith("Say what a dog says.\nwoof woof")
    assert LEAST < len(text) <= LONGEST


def test_long_data_is_cut(tmp_path):
    _, text = training_text([adapter_with(tmp_path, 5000)])

    assert len(text) == LONGEST


def test_other_data_short_data_and_none_give_no_text(tmp_path):
    assert training_text([adapter_with(tmp_path, 5)]) is None
    (tmp_path / "lora" / "training.yaml").write_text("datasets:\n  - path: gone.jsonl\n")
    assert training_text([tmp_path / "lora"]) is None
    (tmp_path / "lora" / "gone.jsonl").write_text("{broken\n" * 2000)
    assert training_text([tmp_path / "lora"]) is None
    assert training_text([]) is None
