"""What llama.cpp leaves out, ignores or cannot: said or refused, and the rest computed right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import UnsupportedError
from exporter.core.events import Note, Warn
from tests.support.architectures import ARCHITECTURES, DEEPSEEK, SIZE, make_architecture
from tests.support.graphs import (
    CLOSE,
    EXPERTS,
    INDEX,
    LINEAR,
    ROUTED,
    TOKENS,
    Config,
    exported,
    forward,
    make_model,
    off,
)
from tests.support.logits import Loaded
from tests.support.reference import read_gguf
from tests.support.tiny import make_tokenizer

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

DECLARED = "num_nextn_predict_layers"
PREDICTING: dict[str, Config] = {
    "glm4_moe": lambda t: t.Glm4MoeConfig(
        **(SIZE | ROUTED), first_k_dense_replace=1, use_qk_norm=True
    ),
    "qwen3_5": lambda t: t.Qwen3_5TextConfig(
        **SIZE, **LINEAR, head_dim=64,
        rope_parameters={"rope_theta": 1e4, "mrope_section": [3, 3, 2], "rope_type": "default",
                         "partial_rotary_factor": 0.25},
    ),
}  # fmt: skip


def declare(base: Path, count: str) -> None:
    """Have config.json count one layer for multi-token prediction, as published ones do."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {count: 1}))


@pytest.mark.parametrize(
    ("name", "count"), [("glm4_moe", DECLARED), ("qwen3_5", "mtp_num_hidden_layers")]
)
def test_prediction_layers_that_trainers_left_out_are_said_and_not_counted(
    toolchain, vocabularies_left_out, tmp_path, name, count
):
    import transformers

    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(PREDICTING[name](transformers), base)
    declare(base, count)

    events = exported(base, toolchain, output)

    loaded = Loaded(toolchain, output)
    assert off(loaded.logits(TOKENS), forward(model)) < CLOSE
    loaded.close()
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("multi-token prediction" in note for note in notes)


def test_prediction_layers_that_are_there_are_kept(toolchain, vocabularies_left_out, tmp_path):
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(PREDICTING["qwen3_5"](transformers), base)
    tensors = load_file(base / "model.safetensors")
    layer = {
        name.replace("model.layers.1.", "mtp.layers.0."): values.clone()
        for name, values in tensors.items()
        if name.startswith("model.layers.1.")
    }
    norms = {
        f"mtp.{part}.weight": torch.zeros(SIZE["hidden_size"])
        for part in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    }
    layer |= norms | {"mtp.fc.weight": torch.randn(SIZE["hidden_size"], 2 * SIZE["hidden_size"])}
    save_file(tensors | layer, base / "model.safetensors", metadata={"format": "pt"})
    declare(base, "mtp_num_hidden_layers")

    events = exported(base, toolchain, output)

    settings, written = read_gguf(output)[:2]
    assert settings["qwen35.nextn_predict_layers"][1] == 1
    assert "blk.2.nextn.eh_proj.weight" in written
    assert "blk.2.attn_q.weight" in written
    loaded = Loaded(toolchain, output)
    assert off(loaded.logits(TOKENS), forward(model)) < CLOSE
    loaded.close()
    assert not [event for event in events if "multi-token" in getattr(event, "message", "")]


def llava(transformers: Any) -> Any:
    """A LLaVA with CLIP, which llama.cpp's converter makes no mmproj of."""
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "projection_dim": 32,
    }  # fmt: skip
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZE),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=300,
        vision_feature_layer=-1,
    )


def test_a_model_whose_eyes_llamacpp_does_not_know_is_written_without_them(
    toolchain, vocabularies_left_out, tmp_path
):
    import transformers

    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(llava(transformers), base, "AutoModelForImageTextToText")

    events = exported(base, toolchain, output)

    loaded = Loaded(toolchain, output)
    assert off(loaded.logits(TOKENS), forward(model)) < CLOSE
    loaded.close()
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["x.gguf"]
    warned = [event.message for event in events if isinstance(event, Warn)]
    assert any(
        warning.startswith("no mmproj is written") and "clip_vision_model" in warning
        for warning in warned
    )


def test_a_file_that_a_vision_model_lacks_is_named(toolchain, vocabularies_left_out, tmp_path):
    import transformers

    base = make_architecture("gemma3_vlm", tmp_path / "base", dtype="float32")
    make_tokenizer(base)
    assert transformers.AutoConfig.from_pretrained(base).vision_config

    events = exported(base, toolchain, tmp_path / "x.gguf")

    warned = [event.message for event in events if isinstance(event, Warn)]
    assert any("preprocessor_config.json is missing" in warning for warning in warned)
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["x.gguf"]


def test_an_encoder_is_found_under_the_names_that_transformers_5_saves(
    toolchain, vocabularies_left_out, tmp_path
):
    import transformers

    base = tmp_path / "base"
    make_model(
        ARCHITECTURES["gemma3_vlm"].config(transformers), base, "AutoModelForImageTextToText"
    )
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (base / "preprocessor_config.json").write_text(json.dumps(pictures))

    exported(base, toolchain, tmp_path / "x.gguf")

    written = read_gguf(tmp_path / "mmproj-base.gguf")[1]
    assert "v.blk.0.attn_q.weight" in written


IGNORED: dict[str, tuple[Config, str]] = {
    "experts' shares": (
        lambda t: t.Qwen3MoeConfig(**SIZE, **EXPERTS, head_dim=16, norm_topk_prob=False),
        "norm_topk_prob is false",
    ),
    "a window": (
        lambda t: t.MistralConfig(**SIZE, sliding_window=8),
        "attends to the whole context where this model has a window of 8 tokens",
    ),
    "an activation": (
        lambda t: t.LlamaConfig(**SIZE, hidden_act="gelu"),
        "SiLU in its feed-forward layers where this model has gelu",
    ),
    "positions": (
        lambda t: t.SmolLM3Config(**SIZE, no_rope_layers=[1, 0]),
        "leaves out the rotary positions of every 4th layer",
    ),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_llamacpp_ignores_is_said_and_is_so(toolchain, vocabularies_left_out, tmp_path, name):
    import transformers

    config, said = IGNORED[name]
    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(config(transformers), base)

    events = exported(base, toolchain, output)

    loaded = Loaded(toolchain, output)
    assert off(loaded.logits(TOKENS), forward(model)) > CLOSE
    loaded.close()
    assert [said in event.message for event in events if isinstance(event, Warn)] == [True]


REFUSED: dict[str, tuple[Config, str]] = {
    "norms of few layers": (
        lambda t: t.CohereConfig(**SIZE, use_qk_norm=True),
        "cannot load this model.*norms of queries and keys.*64 layers or more.*has 2",
    ),
    "no windows": (
        lambda t: t.Cohere2Config(
            **SIZE, head_dim=16, sliding_window=8, layer_types=["full_attention"] * 2
        ),
        "no layer of this model has a sliding window",
    ),
    "heads that no matrix turns": (
        lambda t: t.DeepseekV32Config(**(SIZE | DEEPSEEK | INDEX | {"index_head_dim": 96})),
        "a power of two from 64 on, and this model's are 96",
    ),
    "a tensor": (
        lambda t: t.BitNetConfig(**SIZE, tie_word_embeddings=True),
        "no place for the tensor `model.layers.0.mlp.ffn_sub_norm.weight`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llamacpp_cannot_is_refused_with_the_reason(
    toolchain, vocabularies_left_out, tmp_path, name
):
    import transformers

    config, said = REFUSED[name]
    make_model(config(transformers), tmp_path / "base")

    with pytest.raises(UnsupportedError, match=said) as caught:
        exported(tmp_path / "base", toolchain, tmp_path / "x.gguf")

    assert "--to safetensors" in caught.value.hint
    assert not (tmp_path / "x.gguf").exists()
