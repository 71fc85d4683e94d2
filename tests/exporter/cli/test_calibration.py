"""What `-q auto` is calibrated on when nothing is named."""

from __future__ import annotations

import json

import pytest

from exporter.core.gguf import read_gguf
from exporter.llamacpp.toolchain import cache_folder
from tests.support.tiny import make_adapter
from tests.support.tiny_t5 import make_t5

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.mark.slow
def test_training_data_goes_before_the_small_text_and_no_calibrate_before_both(
    warm_decant, tiny_base, tmp_path
):
    adapter = make_adapter(tmp_path / "lora", tiny_base)
    out = tmp_path / "x.gguf"
    common = ("export", adapter, "--base", tiny_base, "-q", "auto", "-o", out, "--force")

    plain = warm_decant(*common, "--no-calibrate")
    assert plain.returncode == 0, plain.stderr
    assert dataset_of(out) is None
    small = warm_decant(*common)
    assert small.returncode == 0, small.stderr
    assert dataset_of(out) == "calibration.txt"
    rows = [json.dumps({"prompt": "say it", "completion": "aye " * 40})] * 200
    (adapter / "mine.jsonl").write_text("\n".join(rows))
    (adapter / "config.yaml").write_text("datasets:\n  - path: mine.jsonl\n")
    own = warm_decant(*common)
    assert own.returncode == 0, own.stderr

    assert dataset_of(out) == "mine.jsonl.txt"
    assert "the adapter's training data, `mine.jsonl`" in own.stderr
    assert not list((cache_folder() / "imatrix").rglob("*.txt"))  # no copy of the data is kept


def dataset_of(path) -> str | None:
    return read_gguf(path).text("quantize.imatrix.dataset")


@pytest.mark.slow
def test_a_model_that_llama_imatrix_does_not_take_is_chosen_for_without(warm_decant, tmp_path):
    base = make_t5(tmp_path / "t5")

    done = warm_decant("export", "--base", base, "-q", "auto", "-o", tmp_path / "x.gguf")

    assert done.returncode == 0, done.stderr
    assert "without an importance matrix: llama-imatrix does not take this model" in done.stderr
    assert dataset_of(tmp_path / "x.gguf") is None
