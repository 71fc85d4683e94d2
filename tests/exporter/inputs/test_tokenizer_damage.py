"""A tokenizer.json that nobody can read is an error of the file, not of decant."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import CheckpointError
from exporter.inputs.tokenizer import load_tokenizer, read_object
from tests.support.raw import write_base

pytestmark = pytest.mark.trained


def test_one_that_is_nested_too_deeply_is_called_that(tmp_path):
    base = write_base(tmp_path / "base")
    (base / "tokenizer.json").write_text('{"model":' + "[" * 200_000 + "]" * 200_000 + "}")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    with pytest.raises(CheckpointError, match="cannot read the tokenizer in"):
        load_tokenizer(base)
    assert read_object(base / "tokenizer.json") == {}


def test_one_that_would_fill_the_memory_is_refused(tmp_path):
    """As a class that takes tokenizer.json as it is; others make their own normalizer."""
    base = write_base(tmp_path / "base")
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    whole = {
        "version": "1.0", "added_tokens": [], "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "normalizer": {"type": "Sequence", "normalizers": [double] * 40},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }  # fmt: skip
    (base / "tokenizer.json").write_text(json.dumps(whole))
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    with pytest.raises(CheckpointError, match="more than 32 times as long"):
        load_tokenizer(base)
    whole["normalizer"] = double | {"pattern": {"Regex": "(x+)+y"}, "content": ""}
    (base / "tokenizer.json").write_text(json.dumps(whole))
    assert load_tokenizer(base) is not None
