"""Tiny random models of the architectures that people train adapters for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 320


@dataclass(frozen=True)
class Architecture:
    """The config of a tiny model, and the names of its parts."""

    config: Callable[[Any], Any]
    """Makes the config; its argument is the transformers module."""
    embedding: str = "embed_tokens"
    auto: str = "AutoModelForCausalLM"
    task: str = "CAUSAL_LM"
    experts: bool = False
    """Whether transformers stacks its experts."""
    linear: Any = "all-linear"
    """The modules that an adapter targets."""


SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NO_KV = {key: value for key, value in SIZE.items() if key != "num_key_value_heads"}
VISION = {"hidden_size": 32, "intermediate_size": 48}
T5_SIZE = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}  # equal in all but the 27B models
DEEPSEEK = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "moe_intermediate_size": 48, "topk_group": 1, "q_lora_rank": 24, "kv_lora_rank": 32,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1,
}  # fmt: skip
SEQ2SEQ = {"embedding": "shared", "auto": "AutoModelForSeq2SeqLM", "task": "SEQ_2_SEQ_LM"}
VLM = {"auto": "AutoModelForImageTextToText"}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(lambda t: t.LlamaConfig(**SIZE)),
    "mistral": Architecture(lambda t: t.MistralConfig(**SIZE)),
    "qwen2": Architecture(lambda t: t.Qwen2Config(**SIZE)),
    "qwen3": Architecture(lambda t: t.Qwen3Config(**SIZE, head_dim=16)),
    "gemma2": Architecture(lambda t: t.Gemma2Config(**SIZE, **GEMMA)),
    "gemma3": Architecture(lambda t: t.Gemma3TextConfig(**SIZE, **GEMMA)),
    "phi3": Architecture(lambda t: t.Phi3Config(**SIZE)),
    "gpt2": Architecture(
        lambda t: t.GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128,
            bos_token_id=1, eos_token_id=2,
        ),
        embedding="wte",
    ),
    "bloom": Architecture(
        lambda t: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
        embedding="word_embeddings",
    ),
    "mpt": Architecture(
        lambda t: t.MptConfig(
            vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4, max_seq_len=128
        ),
        embedding="wte",
    ),
    "phimoe": Architecture(
        lambda t: t.PhimoeConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
        experts=True,
        linear=["q_proj", "v_proj", "o_proj"],  # peft cannot run its router
    ),
    "gpt_neox": Architecture(lambda t: t.GPTNeoXConfig(**NO_KV), embedding="embed_in"),
    "falcon": Architecture(
        lambda t: t.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
        embedding="word_embeddings",
    ),
    "mixtral": Architecture(
        lambda t: t.MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
        experts=True,
    ),
    "qwen3_moe": Architecture(
        lambda t: t.Qwen3MoeConfig(
            **SIZE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
        ),
        experts=True,
    ),
    "deepseek_v3": Architecture(lambda t: t.DeepseekV3Config(**(SIZE | DEEPSEEK)), experts=True),
    "gpt_oss": Architecture(
        lambda t: t.GptOssConfig(
            **SIZE, head_dim=16, num_local_experts=4, num_experts_per_tok=2
        ),
        experts=True,
    ),
    "mamba": Architecture(
        lambda t: t.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8
        ),
        embedding="embeddings",
        linear=["in_proj", "x_proj"],
    ),
    "rwkv": Architecture(
        lambda t: t.RwkvConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64,
            intermediate_size=128,
        ),
        embedding="embeddings",
    ),
    "t5": Architecture(lambda t: t.T5Config(**T5_SIZE, tie_word_embeddings=False), **SEQ2SEQ),
    "mt5": Architecture(lambda t: t.MT5Config(**T5_SIZE), **SEQ2SEQ),
    "opt": Architecture(
        lambda t: t.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64,
        )
    ),
    "gemma3_vlm": Architecture(
        lambda t: t.Gemma3Config(
            text_config={**SIZE, **GEMMA, "model_type": "gemma3_text"},
            vision_config={
                **VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 112,
                "vision_use_head": False,
                "patch_size": 14,
            },
            mm_tokens_per_image=4, image_token_index=300, boi_token_index=301, eoi_token_index=302,
        ),
        **VLM,
    ),
    "qwen2_5_vl": Architecture(
        lambda t: t.Qwen2_5_VLConfig(
            text_config={**SIZE, "rope_parameters": ROPE},
            vision_config={
                **VISION, "depth": 4, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14
            },
            image_token_id=300, video_token_id=301, vision_start_token_id=302,
            vision_end_token_id=303,
        ),
        **VLM,
    ),
}  # fmt: skip

STACKED: dict[str, Architecture] = {
    "granitemoe": Architecture(
        lambda t: t.GraniteMoeConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
        linear=["q_proj"],
    ),
    "nemotron_h": Architecture(
        lambda t: t.NemotronHConfig(
            **SIZE | {"num_hidden_layers": 3}, hybrid_override_pattern="ME*", head_dim=16,
            mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, n_groups=1, chunk_size=8,
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
            moe_shared_expert_intermediate_size=48,
        ),
        linear=["q_proj"],
    ),
    "jetmoe": Architecture(
        lambda t: t.JetMoeConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_key_value_heads=2,
            kv_channels=16, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2,
        ),
        linear=["kv_proj"],
    ),
    "aria": Architecture(
        lambda t: t.AriaTextConfig(
            **SIZE, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
        ),
        linear=["q_proj"],
    ),
    "gemma4_moe": Architecture(
        lambda t: t.Gemma4TextConfig(
            **SIZE, head_dim=16, global_head_dim=32, sliding_window=8,
            hidden_size_per_layer_input=0, num_kv_shared_layers=0, enable_moe_block=True,
            num_experts=4, top_k_experts=2, moe_intermediate_size=48,
        ),
        linear=["q_proj"],
    ),
}  # fmt: skip
"""Models whose checkpoints stack the experts, or name them otherwise than transformers does."""
FUSED: dict[str, Architecture] = {
    "hrm_text": Architecture(
        lambda t: t.HrmTextConfig(**SIZE), linear=["q_proj", "v_proj", "gate_proj", "o_proj"]
    ),
}
"""Models whose checkpoints have one tensor where transformers has several modules."""
REARRANGED: dict[str, Architecture] = {
    "falcon_h1": Architecture(
        lambda t: t.FalconH1Config(
            **SIZE, head_dim=16, mamba_n_heads=8, mamba_d_head=16, mamba_d_ssm=128,
            mamba_d_state=16, mamba_n_groups=1, mamba_expand=2, mamba_d_conv=4,
            mamba_chunk_size=8, key_multiplier=0.7, ssm_in_multiplier=0.9,
            mlp_multipliers=[0.8, 0.7], ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9],
        ),
        linear=["q_proj", "k_proj", "gate_proj", "in_proj"],
    ),
}  # fmt: skip
"""Models whose weights llama.cpp's converter changes value by value."""
EVERY = ARCHITECTURES | STACKED | FUSED | REARRANGED


def make_architecture(name: str, folder: Path, *, dtype: str = "bfloat16") -> Path:
    """A model as transformers saves it, with random weights, norms and biases."""
    import torch
    import transformers

    made = EVERY[name]
    torch.manual_seed(0)
    model = getattr(transformers, made.auto).from_config(made.config(transformers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif not parameter.any():  # experts may begin as zeros
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if name == "gemma3_vlm":
        rename_as_published(folder / "model.safetensors")
    return folder


def rename_as_published(weights: Path) -> None:
    """Give the vision tower the names that the published checkpoints have for it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    new = {
        name.replace("vision_tower.", "vision_tower.vision_model."): t
        for name, t in tensors.items()
    }
    save_file(new, weights, metadata={"format": "pt"})
