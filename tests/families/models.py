"""Popular families as people hold them: their own settings, fewer and narrower layers, a LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.core.silence import no_collection
from tests.families.tokenizers import tokenizer_folder

Config = Callable[[Any], Any]
"""Of the transformers module."""

SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1,
    "mamba_expand": 2, "mamba_d_conv": 4, "mamba_chunk_size": 64,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048, "rope_theta": 500000.0,
}  # fmt: skip
QWEN = {"bos_token_id": 151643, "eos_token_id": 151645}
EYES = {
    "depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2,
    "out_hidden_size": 256, "patch_size": 14,
}  # fmt: skip
CAUSAL, VISION = "AutoModelForCausalLM", "AutoModelForImageTextToText"
SEQ2SEQ, EMBED, RERANK = (
    "AutoModelForSeq2SeqLM", "AutoModel", "AutoModelForSequenceClassification"
)  # fmt: skip
LANGUAGE = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
"""What most trainers adapt of a model that sees."""
TASKS = {
    CAUSAL: "CAUSAL_LM", VISION: "CAUSAL_LM", SEQ2SEQ: "SEQ_2_SEQ_LM", EMBED: "FEATURE_EXTRACTION",
    RERANK: "SEQ_CLS",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """How to make one."""

    tokenizer: str
    config: Config
    auto: str = CAUSAL
    linear: Any = "all-linear"
    """What the LoRA adapts."""
    heads_left_out: bool = False
    """Whether the checkpoint names multi-token-prediction layers that it does not hold."""


def small(**changes: Any) -> dict[str, Any]:
    return SMALL | changes


def make_family(name: str, folder: Path) -> tuple[Path, Path]:
    """(base, adapter): random weights in bf16 and a LoRA, with the family's tokenizer in both."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    family = FAMILIES[name]
    base, adapter = folder / "base", folder / f"{name}-lora"
    torch.manual_seed(0)
    config = family.config(transformers)
    model = getattr(transformers, family.auto).from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(base)
    if family.auto == VISION:
        pictures = {
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "size": {"height": 56, "width": 56},
        }
        (base / "preprocessor_config.json").write_text(json.dumps(pictures))
    shutil.copytree(tokenizer_folder(family.tokenizer), base, dirs_exist_ok=True)
    asked = LoraConfig(
        task_type=TASKS[family.auto], r=8, lora_alpha=16, target_modules=family.linear
    )
    tuned = get_peft_model(model, asked)
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.05)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(adapter)
    with no_collection():
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(adapter)  # as trainers do
    return base, adapter


FAMILIES: dict[str, Family] = {
    "Llama 2": Family("llama2", lambda t: t.LlamaConfig(**small(vocab_size=32000), bos_token_id=1, eos_token_id=2)),
    "Llama 3.2": Family("llama3_2", lambda t: t.LlamaConfig(
        **small(vocab_size=128256), tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE,
        bos_token_id=128000, eos_token_id=[128001, 128008, 128009])),
    "TinyLlama": Family("llama2", lambda t: t.LlamaConfig(
        **small(vocab_size=32000, max_position_embeddings=2048), bos_token_id=1, eos_token_id=2)),
    "Mistral v0.1": Family("mistral_v1", lambda t: t.MistralConfig(
        **small(vocab_size=32000, max_position_embeddings=32768), sliding_window=4096, bos_token_id=1, eos_token_id=2)),
    "Mistral v0.3": Family("mistral_v3", lambda t: t.MistralConfig(
        **small(vocab_size=32768, max_position_embeddings=32768), sliding_window=None, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "Mistral Nemo": Family("mistral_nemo", lambda t: t.MistralConfig(
        **small(vocab_size=131072), head_dim=128, sliding_window=None, bos_token_id=1, eos_token_id=2)),
    "Mistral Small 3": Family("tekken", lambda t: t.Mistral3Config(
        text_config=t.MistralConfig(**small(vocab_size=131072), head_dim=128, sliding_window=None),
        vision_config=t.PixtralVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                                            num_attention_heads=2, image_size=56, patch_size=14),
        image_token_index=10, spatial_merge_size=2), VISION, LANGUAGE),
    "Ministral 3": Family("ministral3", lambda t: t.Ministral3Config(**small(vocab_size=131072), head_dim=128)),
    "Qwen 2.5": Family("qwen2_5", lambda t: t.Qwen2Config(**small(vocab_size=151936), tie_word_embeddings=True, **QWEN)),
    "Qwen 2.5, padded": Family("qwen2_5", lambda t: t.Qwen2Config(**small(vocab_size=152064), **QWEN)),
    "Qwen 3": Family("qwen3", lambda t: t.Qwen3Config(
        **small(vocab_size=151936), head_dim=128, tie_word_embeddings=True, **QWEN)),
    "Qwen 3 MoE": Family("qwen3", lambda t: t.Qwen3MoeConfig(
        **small(vocab_size=151936), head_dim=128, norm_topk_prob=True, **MOE, **QWEN)),
    "Qwen 3-Next": Family("qwen3", lambda t: t.Qwen3NextConfig(
        **small(vocab_size=151936), head_dim=64, shared_expert_intermediate_size=256, **LINEAR, **MOE, **QWEN)),
    "Qwen 3.5": Family("qwen35", lambda t: t.Qwen3_5TextConfig(
        **small(vocab_size=151936), head_dim=64, **LINEAR, **QWEN)),
    "Qwen 3.5, MTP layers left out": Family("qwen35", lambda t: t.Qwen3_5TextConfig(
        **small(vocab_size=151936), head_dim=64, mtp_num_hidden_layers=1, **LINEAR, **QWEN)),
    "Gemma 2": Family("gemma2", lambda t: t.Gemma2Config(
        **small(vocab_size=256000), head_dim=256, bos_token_id=2, eos_token_id=[1, 107])),
    "Gemma 3": Family("gemma3", lambda t: t.Gemma3TextConfig(
        **small(vocab_size=262144), head_dim=256, sliding_window=512, bos_token_id=2, eos_token_id=[1, 106])),
    "Gemma 4": Family("gemma4", lambda t: t.Gemma4TextConfig(
        **small(vocab_size=262144), head_dim=256, global_head_dim=512, sliding_window=512, hidden_size_per_layer_input=0,
        num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"], bos_token_id=2,
        eos_token_id=[1, 106])),
    "Phi-3": Family("phi3", lambda t: t.Phi3Config(
        **small(vocab_size=32064), sliding_window=None, bos_token_id=1, eos_token_id=[32000, 32007])),
    "Phi-4-mini": Family("gpt4o", lambda t: t.Phi3Config(
        **small(vocab_size=200064), sliding_window=None, tie_word_embeddings=True, bos_token_id=199999, eos_token_id=199999,
        pad_token_id=199999)),
    "SmolLM3": Family("smollm3", lambda t: t.SmolLM3Config(
        **small(vocab_size=128256, num_hidden_layers=4), no_rope_layer_interval=4, eos_token_id=128012)),
    "Granite 3": Family("granite3", lambda t: t.GraniteConfig(
        **small(vocab_size=49216), embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22,
        attention_multiplier=0.015625, bos_token_id=0, eos_token_id=0)),
    "Granite 4 (hybrid, MoE)": Family("granite4", lambda t: t.GraniteMoeHybridConfig(
        **small(vocab_size=1024), num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=256,
        layer_types=["mamba", "attention"], position_embedding_type="nope", embedding_multiplier=12.0,
        logits_scaling=6.0, residual_multiplier=0.22, attention_multiplier=0.015625, bos_token_id=0, eos_token_id=0, **MAMBA)),
    "DeepSeek V3": Family("deepseek_v3", lambda t: t.DeepseekV3Config(
        **small(vocab_size=129280, num_key_value_heads=4), n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, moe_intermediate_size=256, q_lora_rank=64, kv_lora_rank=256, qk_rope_head_dim=64,
        qk_nope_head_dim=64, v_head_dim=64, first_k_dense_replace=1, bos_token_id=0, eos_token_id=1)),
    "GLM 4": Family("glm4", lambda t: t.Glm4Config(
        **small(vocab_size=1024), head_dim=64, partial_rotary_factor=0.5, eos_token_id=[0, 4, 6], pad_token_id=0)),
    "GLM 4.5": Family("glm4", lambda t: t.Glm4MoeConfig(
        **small(vocab_size=1024), head_dim=64, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        moe_intermediate_size=256, n_group=1, topk_group=1, first_k_dense_replace=1, partial_rotary_factor=0.5,
        use_qk_norm=True, eos_token_id=[0, 4, 6], pad_token_id=0)),
    "gpt-oss": Family("gptoss", lambda t: t.GptOssConfig(
        **small(vocab_size=201088, intermediate_size=256), head_dim=64, num_local_experts=4, num_experts_per_tok=2,
        bos_token_id=199998, eos_token_id=200002, pad_token_id=199999)),
    "OLMo 2": Family("olmo", lambda t: t.Olmo2Config(**small(vocab_size=50432), eos_token_id=0, pad_token_id=1)),
    "OLMo 3": Family("olmo", lambda t: t.Olmo3Config(
        **small(vocab_size=50432, num_hidden_layers=4), sliding_window=4096, eos_token_id=0, pad_token_id=1)),
    "Falcon-H1": Family("falcon", lambda t: t.FalconH1Config(
        **small(vocab_size=65024), head_dim=64, mamba_d_ssm=512, embedding_multiplier=5.7, lm_head_multiplier=0.04,
        key_multiplier=0.39, attention_out_multiplier=0.94, ssm_in_multiplier=1.25, ssm_out_multiplier=0.24,
        mlp_multipliers=[0.88, 0.18], ssm_multipliers=[0.35, 0.25, 0.18, 0.5, 0.35], bos_token_id=11, eos_token_id=11, **MAMBA),
        linear=["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"]),
    "Nemotron-H": Family("nemotron_h", lambda t: t.NemotronHConfig(
        **small(vocab_size=131072, num_hidden_layers=4), hybrid_override_pattern="M-*-", head_dim=64, mamba_num_heads=8,
        mamba_head_dim=64, ssm_state_size=128, n_groups=1, chunk_size=64, bos_token_id=1, eos_token_id=2),
        linear=["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj"]),
    "LFM2": Family("lfm2", lambda t: t.Lfm2Config(
        **small(vocab_size=1024), layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
        bos_token_id=1, eos_token_id=4, pad_token_id=0)),
    "Command-R": Family("command_r", lambda t: t.CohereConfig(
        **small(vocab_size=256000), logit_scale=0.0625, bos_token_id=5, eos_token_id=255001)),
    "Command R7B": Family("command_r", lambda t: t.Cohere2Config(
        **small(vocab_size=256000, num_hidden_layers=4), head_dim=64, logit_scale=0.25, sliding_window=4096, bos_token_id=5,
        eos_token_id=255001)),
    "StarCoder2": Family("starcoder2", lambda t: t.Starcoder2Config(
        **small(vocab_size=49152), sliding_window=4096, bos_token_id=0, eos_token_id=0)),
    "GPT-2": Family("gpt2", lambda t: t.GPT2Config(
        vocab_size=50257, n_embd=256, n_layer=2, n_head=4, n_positions=1024, bos_token_id=50256, eos_token_id=50256)),
    "BLOOM": Family("bloom", lambda t: t.BloomConfig(
        vocab_size=1024, hidden_size=256, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=3)),
    "mt0": Family("t5", lambda t: t.MT5Config(
        vocab_size=250112, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4, decoder_start_token_id=0,
        tie_word_embeddings=False), SEQ2SEQ),
    "T5": Family("t5", lambda t: t.T5Config(
        vocab_size=250112, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4, decoder_start_token_id=0), SEQ2SEQ),
    "BERT, embedder": Family("bert", lambda t: t.BertConfig(
        vocab_size=30522, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4), EMBED,
        ["query", "key", "value"]),
    "XLM-R, embedder": Family("xlm_r", lambda t: t.XLMRobertaConfig(
        vocab_size=250048, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=514, type_vocab_size=1), EMBED, ["query", "key", "value"]),
    "ModernBERT, embedder": Family("modernbert", lambda t: t.ModernBertConfig(
        **{k: v for k, v in small(vocab_size=50496).items() if k != "num_key_value_heads"}, pad_token_id=50433,
        bos_token_id=50431, cls_token_id=50431, eos_token_id=50432, sep_token_id=50432), EMBED, ["Wqkv", "Wo"]),
    "XLM-R, reranker": Family("xlm_r", lambda t: t.XLMRobertaConfig(
        vocab_size=250048, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=514, type_vocab_size=1, num_labels=1), RERANK, ["query", "key", "value"]),
    "BERT, reranker": Family("bert", lambda t: t.BertConfig(
        vocab_size=30522, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1), RERANK, ["query", "key", "value"]),
    "Qwen3-Embedding": Family("qwen3_embedding", lambda t: t.Qwen3Config(
        **small(vocab_size=151936), head_dim=128, tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151643), EMBED),
    "Qwen 2.5 VL": Family("qwen2_5", lambda t: t.Qwen2_5_VLConfig(
        text_config=small(vocab_size=151936, rope_parameters={
            "rope_type": "default", "mrope_section": [16, 8, 8], "rope_theta": 1e6}),
        vision_config=EYES, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653), VISION, LANGUAGE),
    "Gemma 3, with vision": Family("gemma3", lambda t: t.Gemma3Config(
        text_config=small(vocab_size=262208, head_dim=256, sliding_window=512),
        vision_config={"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 112, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4, image_token_index=262144, boi_token_index=255999, eoi_token_index=256000), VISION, LANGUAGE),
}  # fmt: skip
