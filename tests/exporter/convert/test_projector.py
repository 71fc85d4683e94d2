"""What lets a model see, in the file that llama.cpp loads beside it."""

from __future__ import annotations

import json

import pytest

from exporter.convert.to_gguf import convert
from exporter.inputs.checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from tests.support.architectures import SIZE
from tests.support.vocabularies import save_pieces

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


def test_pixtrals_projector_has_the_token_between_lines(toolchain, tmp_path):
    """llama.cpp does not load one without; upstream's converter loses it in today's checkpoints."""
    import transformers

    rows = save_pieces(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["added_tokens"].append({**whole["added_tokens"][0], "id": rows, "content": "[IMG_BREAK]"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    text = transformers.MistralConfig(**SIZE | {"vocab_size": rows + 1})
    eyes = transformers.PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=eyes, spatial_merge_size=2)
    transformers.Mistral3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tensors = MergedTensors(plan_merge(open_checkpoint(tmp_path), []))

    made = convert(tensors, tmp_path, toolchain, model_name="m", part="projector")

    shapes = {slot.name: slot.shape for slot in made.slots}
    assert shapes["v.token_embd.img_break"] == (SIZE["hidden_size"],)
