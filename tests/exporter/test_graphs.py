"""Kinds whose settings or tensors transformers 5 saves otherwise: llama.cpp's logits of each.

Bases with random weights, saved by transformers and exported as they are, against the forward of
transformers itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.core.errors import UnsupportedError
from exporter.core.events import Note, Warn
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from tests.support.architectures import (
    ARCHITECTURES,
    DEEPSEEK,
    GEMMA,
    SIZE,
    T5_SIZE,
    make_architecture,
)
from tests.support.logits import Loaded
from tests.support.reference import read_gguf
from tests.support.roads import shake
from tests.support.tiny import make_tokenizer

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

TOKENS = [(number * 37) % 290 + 5 for number in range(24)]
CLOSE = 1e-3  # of the largest logit: llama.cpp looks GELU up in a table of 16 bits
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 48, "num_key_value_heads": 4, "head_dim": 16,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_expand": 2, "mamba_d_conv": 4, "mamba_chunk_size": 8,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "full_attention_interval": 2,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
    "rope_theta": 1e4, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
WINDOWS = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
INDEX = {"index_topk": 4, "index_n_heads": 32, "index_head_dim": 64}
"""An indexer that leaves most tokens out. With few heads, many scores would be 0, all alike."""
GPT2_SIZE = {
    "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Config = Callable[[Any], Any]

RIGHT: dict[str, Config] = {
    "afmoe": lambda t: t.AfmoeConfig(
        **(SIZE | {"num_hidden_layers": 4}), **EXPERTS, head_dim=16, num_dense_layers=1,
        mup_enabled=True, sliding_window=8,
    ),
    "bamba": lambda t: t.BambaConfig(**SIZE, **MAMBA, attn_layer_indices=[1]),
    "deepseek_v3": lambda t: t.DeepseekV3Config(**(SIZE | DEEPSEEK)),
    "deepseek_v32": lambda t: t.DeepseekV32Config(**(SIZE | DEEPSEEK | INDEX)),
    "dots1": lambda t: t.Dots1Config(**(SIZE | ROUTED), first_k_dense_replace=1),
    "gemma3 with other layers": lambda t: t.Gemma3TextConfig(**SIZE, **GEMMA, **WINDOWS),
    "afmoe with plain embeddings": lambda t: t.AfmoeConfig(
        **(SIZE | {"num_hidden_layers": 4}), **EXPERTS, head_dim=16, num_dense_layers=1,
        mup_enabled=False, sliding_window=8,
    ),
    "gemma2 with another scale": lambda t: t.Gemma2Config(**SIZE, head_dim=16),
    "gemma3 with another scale": lambda t: t.Gemma3TextConfig(
        **SIZE, **GEMMA | {"query_pre_attn_scalar": 100}
    ),
    "gpt2 scaled by layers": lambda t: t.GPT2Config(
        **GPT2_SIZE, scale_attn_by_inverse_layer_idx=True
    ),
    "gpt2 not scaled": lambda t: t.GPT2Config(**GPT2_SIZE, scale_attn_weights=False),
    "gpt_bigcode not scaled": lambda t: t.GPTBigCodeConfig(
        **GPT2_SIZE, scale_attn_weights=False
    ),
    "glm_moe_dsa": lambda t: t.GlmMoeDsaConfig(**(SIZE | DEEPSEEK | INDEX)),
    "glm": lambda t: t.GlmConfig(**SIZE, head_dim=16, rms_norm_eps=1e-3),
    "granite 4": lambda t: t.GraniteMoeHybridConfig(
        **SIZE, **MAMBA, num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=96,
        layer_types=["mamba", "attention"], position_embedding_type="rope",
    ),
    "laguna without windows": lambda t: t.LagunaConfig(**SIZE, **EXPERTS, head_dim=16),
    "minimax_m2": lambda t: t.MiniMaxM2Config(
        **SIZE, head_dim=16, num_local_experts=4, num_experts_per_tok=2, rotary_dim=8
    ),
    "ministral3": lambda t: t.Ministral3Config(**SIZE, head_dim=16, rope_parameters=YARN),
    "nemotron_h without experts": lambda t: t.NemotronHConfig(
        **SIZE, head_dim=16, hybrid_override_pattern="M*-", mamba_num_heads=8, mamba_head_dim=16,
        ssm_state_size=16, n_groups=1, chunk_size=8,
    ),
    "qwen3_next": lambda t: t.Qwen3NextConfig(
        **SIZE, **LINEAR, **EXPERTS, head_dim=16, shared_expert_intermediate_size=48
    ),
    "qwen3_vl_moe": lambda t: t.Qwen3VLMoeConfig(
        text_config={
            **SIZE, **EXPERTS, "head_dim": 16,
            "rope_parameters": {"rope_theta": 1e4, "mrope_section": [3, 3, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "patch_size": 14, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=300, video_token_id=301, vision_start_token_id=302,
        vision_end_token_id=303,
    ),
    "solar_open": lambda t: t.SolarOpenConfig(**(SIZE | ROUTED)),
    "t5 with tied ends": lambda t: t.T5Config(**T5_SIZE),
}  # fmt: skip
AUTO = {"t5 with tied ends": "AutoModelForSeq2SeqLM", "qwen3_vl_moe": "AutoModelForImageTextToText"}


def make_model(config: Any, folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    """A base with random weights in float32, saved; and the model that transformers reads."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, auto)
    model = kind.from_config(config)
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if values.is_floating_point() and "inv_freq" not in name:
                values.add_(torch.randn_like(values) * 0.1)
    model.float().save_pretrained(folder)
    make_tokenizer(folder)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def forward(model: Any) -> np.ndarray[Any, Any]:
    import torch

    more = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS]), use_cache=False, **more).logits[0].numpy()


def exported(base: Path, toolchain: Any, output: Path) -> list[Any]:
    """Write the base as a GGUF in float32; what was reported."""
    events: list[Any] = []
    export(ExportRequest((), base, ("F32",), (output,)), toolchain, report=events.append)
    return events


def off(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference, as a part of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", RIGHT)
def test_llamacpp_computes_what_transformers_does(toolchain, vocabularies_left_out, tmp_path, name):
    import transformers

    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(RIGHT[name](transformers), base, AUTO.get(name, "AutoModelForCausalLM"))
    exported(base, toolchain, output)

    loaded = Loaded(toolchain, output)
    found = loaded.logits(TOKENS, encoder=model.config.is_encoder_decoder)
    loaded.close()
    assert off(found[: len(TOKENS)], forward(model)) < CLOSE


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


@pytest.mark.parametrize(
    "name", ["bamba", "gemma2 with another scale", "gpt2 scaled by layers", "solar_open"]
)
def test_an_adapter_file_is_arranged_as_the_base_is(
    toolchain, vocabularies_left_out, tmp_path, name
):
    import transformers
    from peft import LoraConfig, get_peft_model

    base, output = tmp_path / "base", tmp_path / "x.gguf"
    model = make_model(RIGHT[name](transformers), base)
    targets = ["c_attn"] if "gpt2" in name else ["q_proj", "k_proj", "v_proj"]
    trained = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    shake(trained)
    trained.save_pretrained(tmp_path / "lora")
    exported(base, toolchain, output)

    made = export_lora(LoraRequest(tmp_path / "lora", base, tmp_path / "lora.gguf"), toolchain)

    loaded = Loaded(toolchain, output)
    expected, adapter = forward(trained.eval()), loaded.adapter(made.path)
    assert off(loaded.logits(TOKENS), expected) > CLOSE
    assert off(loaded.logits(TOKENS, adapter=adapter), expected) < CLOSE
    loaded.close()
