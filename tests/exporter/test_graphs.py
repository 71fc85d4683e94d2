"""Kinds whose settings or tensors transformers 5 saves otherwise: llama.cpp's logits of each.

Bases with random weights, saved by transformers and exported as they are, against the forward of
transformers itself.
"""

from __future__ import annotations

import pytest

from exporter.formats.gguf_lora import LoraRequest, export_lora
from tests.support.architectures import DEEPSEEK, GEMMA, SIZE, T5_SIZE
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
from tests.support.roads import shake

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_expand": 2, "mamba_d_conv": 4, "mamba_chunk_size": 8,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
    "rope_theta": 1e4, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
WINDOWS = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
GPT2_SIZE = {
    "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

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
    "mpt": lambda t: t.MptConfig(
        vocab_size=SIZE["vocab_size"], d_model=64, n_layers=2, n_heads=4, max_seq_len=128
    ),
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
