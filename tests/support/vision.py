"""Tiny vision models as whole folders: weights, tokenizer and picture preprocessor."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.architectures import SIZE, make_architecture
from tests.support.tiny import make_tokenizer
from tests.support.vocabularies import save_pieces

PICTURES = {"image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.6, 0.4]}
BREAK = "[IMG_BREAK]"


def make_seeing(name: str, folder: Path) -> Path:
    """A model of tests.support.architectures, or "pixtral": Mistral 3 with Pixtral's tower."""
    if name == "pixtral":
        make_pixtral(folder)
    else:
        make_architecture(name, folder)
        make_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    return folder


def make_pixtral(folder: Path) -> None:
    import torch
    import transformers

    rows = save_pieces(folder)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["added_tokens"].append({**whole["added_tokens"][0], "id": rows, "content": BREAK})
    path.write_text(json.dumps(whole))
    text = transformers.MistralConfig(**SIZE | {"vocab_size": rows + 1})
    eyes = transformers.PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=eyes, spatial_merge_size=2)
    torch.manual_seed(0)
    model = transformers.Mistral3ForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
