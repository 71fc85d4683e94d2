"""Why the converter stopped, told from what its own code raises."""

from __future__ import annotations

import pytest

from exporter.converter_import import imported
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.refusals import UNUSABLE, reason, unusable

pytestmark = pytest.mark.llamacpp


@pytest.fixture
def base(toolchain):
    """llama.cpp's module that all of its classes are in."""
    with imported(toolchain):
        from conversion import base

        yield base


def raised(run):
    """The error that `run` ends with."""
    with pytest.raises(UNUSABLE) as caught:
        run()
    return caught.value


class Model:
    """What the converter's methods are called with."""

    model_arch = None
    hparams: dict[str, object]

    def __init__(self, base, **hparams):
        self.hparams, self.find_hparam = hparams, base.ModelBase.find_hparam


def test_an_assertion_without_a_word_is_told_by_its_line(base):
    import gguf

    model = Model(base)
    model.model_arch = gguf.MODEL_ARCH.LLAMA

    error = raised(lambda: base.ModelBase.format_tensor_name(model, gguf.MODEL_TENSOR.ATTN_Q))

    assert str(error) == ""
    assert reason(error).startswith("it expects `bid is not None` (conversion/base.py:")


def test_a_setting_that_is_missing_is_told_with_its_place(base):
    import gguf
    from conversion.gpt2 import GPT2Model

    model = Model(base)
    model.block_count, model.gguf_writer = 1, gguf.GGUFWriter(path=None, arch="gpt2")

    error = raised(lambda: GPT2Model.set_gguf_parameters(model))

    assert reason(error).startswith(
        "it looks for `n_ctx` in config.json, which is not there (conversion/gpt2.py:"
    )


def test_a_tensor_without_a_place_is_named(base):
    import gguf

    model = Model(base)
    model.tensor_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)

    error = raised(lambda: base.ModelBase.map_tensor_name(model, "model.layers.0.odd.weight"))

    assert reason(error) == ("llama.cpp has no place for the tensor `model.layers.0.odd.weight`")
    listed = ValueError("Unprocessed norms: ['model.layers.0.a', 'model.layers.0.b']")
    assert reason(listed) == "llama.cpp has no place for the tensor `model.layers.0.a`"


def test_a_complete_folder_is_not_asked_to_be_complete(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    without = unusable(tmp_path, "A", AssertionError("why"))
    (tmp_path / "tokenizer.json").write_text("{}")
    complete = unusable(tmp_path, "A", AssertionError("why"))
    lacking = unusable(tmp_path, "A", FileNotFoundError(2, "", str(tmp_path / "merges.txt")))

    assert isinstance(without, CheckpointError)
    assert "is the folder complete" in without.hint
    assert isinstance(complete, UnsupportedError)
    assert complete.message.endswith("(A): why")
    assert "--to safetensors" in complete.hint
    assert "merges.txt is missing" in lacking.message
    assert "merges.txt" in lacking.hint
