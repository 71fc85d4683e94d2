"""What lets a model see, in the file that llama.cpp loads beside it."""

from __future__ import annotations

import pytest

from exporter.convert.to_gguf import convert, has_projector
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from tests.support.architectures import SIZE
from tests.support.raw import edit_json
from tests.support.vision import make_seeing

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


def test_pixtrals_projector_has_the_token_between_lines(toolchain, tmp_path):
    """llama.cpp does not load one without; upstream's converter loses it in today's checkpoints."""
    make_seeing("pixtral", tmp_path)
    tensors = MergedTensors(plan_merge(open_checkpoint(tmp_path), []))

    made = convert(tensors, tmp_path, toolchain, model_name="m", part="projector")

    shapes = {slot.name: slot.shape for slot in made.slots}
    assert shapes["v.token_embd.img_break"] == (SIZE["hidden_size"],)


def test_a_gemmas_picture_becomes_as_many_tokens_as_its_config_says(toolchain, tmp_path):
    """The processor's settings do not say it: upstream's converter would take 256."""
    make_seeing("gemma3_vlm", tmp_path)  # 8 by 8 patches, 2 by 2 tokens
    edit_json(tmp_path / "config.json", mm_tokens_per_image=16)
    tensors = MergedTensors(plan_merge(open_checkpoint(tmp_path), []))

    made = convert(tensors, tmp_path, toolchain, model_name="m", part="projector")

    assert made.writer.kv_data[0]["clip.vision.projector.scale_factor"].value == 2


def test_a_model_that_sees_as_llama_cpp_does_not_know_is_warned_of(toolchain, tmp_path):
    import transformers

    transformers.InternVLConfig(architectures=["InternVLForConditionalGeneration"]).save_pretrained(
        tmp_path
    )
    told: list[object] = []

    assert not has_projector(tmp_path, toolchain, report=told.append)
    assert "the model takes text alone" in str(told[0])
    assert "'InternVLForConditionalGeneration'" in str(told[0])
