"""A tokenizer.json that nobody can read is an error of the file, not of decant."""

from __future__ import annotations

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
