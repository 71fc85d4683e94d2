"""Tiny models with a layer for multi-token prediction (MTP), whose guesses are partly right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.architectures import SIZE
from tests.support.graphs import LINEAR, ROUTED, make_model
from tests.support.tiny import CHAT_TEMPLATE, TEXT

if TYPE_CHECKING:
    import torch

WRITING = ("o_proj.weight", "out_proj.weight", "down_proj.weight")
"""What adds to the hidden state."""
WIDTH = SIZE["hidden_size"]
TOKENS = (
    "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "[gMASK]", "<|endoftext|>",
    "<|observation|>",
)  # fmt: skip
"""The special tokens, among them those that the converter wants of a GLM."""


def make_predicting(folder: Path, name: str, *, weight: float) -> Path:
    """A base of random weights that guesses the token after the next from the next one alone.

    name: glm4_moe or qwen3_5. weight: how much its layers add to the embedding, on which alone the
    prediction rests; 0 makes each guess right.
    """
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config, count, add = MODELS[name]
    make_model(config(transformers), folder)
    (folder / "tokenizer.model").unlink()
    spell(folder)
    tensors = load_file(folder / "model.safetensors")
    for key, values in tensors.items():
        if key.endswith(WRITING):
            values.mul_(weight)
    layer = {
        key.split("layers.1.")[1]: values.clone()
        for key, values in tensors.items()
        if "layers.1." in key
    }
    layer |= {
        key: torch.zeros_like(values) for key, values in layer.items() if key.endswith(WRITING)
    }
    first_half = torch.cat((torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH)), dim=1)
    tensors |= add(tensors, layer, first_half)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {count: 1}))
    return folder


def spell(folder: Path) -> None:
    """Give a model GPT-2's kind of tokenizer, of letters and a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE["vocab_size"], special_tokens=list(TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def glm4_moe(transformers: Any) -> Any:
    return transformers.Glm4MoeConfig(
        **(SIZE | ROUTED), first_k_dense_replace=1, use_qk_norm=True, tie_word_embeddings=False
    )


def of_glm4_moe(tensors: Any, layer: Any, projection: torch.Tensor) -> Any:
    """A prediction layer as GLM-4.5 has it: it continues the numbering, with its own head."""
    import torch

    ones = torch.ones(WIDTH)
    parts = layer | {
        "eh_proj.weight": projection,
        "enorm.weight": ones,
        "hnorm.weight": ones.clone(),
        "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        "shared_head.norm.weight": tensors["model.norm.weight"].clone(),
        "shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }
    return {f"model.layers.2.{key}": values for key, values in parts.items()}


def qwen3_5(transformers: Any) -> Any:
    rope = {"rope_theta": 1e4, "mrope_section": [3, 3, 2], "rope_type": "default"}
    return transformers.Qwen3_5TextConfig(
        **SIZE,
        **LINEAR,
        head_dim=64,
        rope_parameters=rope | {"partial_rotary_factor": 0.25},
    )


def of_qwen3_5(tensors: Any, layer: Any, projection: torch.Tensor) -> Any:
    """A prediction layer as Qwen 3.5 has it; its norms hold what is added to 1."""
    import torch

    parts = {f"layers.0.{key}": values for key, values in layer.items()} | {
        "fc.weight": projection,
        "norm.weight": tensors["model.norm.weight"].clone(),
        "pre_fc_norm_embedding.weight": torch.zeros(WIDTH),
        "pre_fc_norm_hidden.weight": torch.zeros(WIDTH),
    }
    return {f"mtp.{key}": values for key, values in parts.items()}


MODELS = {
    "glm4_moe": (glm4_moe, "num_nextn_predict_layers", of_glm4_moe),
    "qwen3_5": (qwen3_5, "mtp_num_hidden_layers", of_qwen3_5),
}
