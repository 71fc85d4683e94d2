"""Tiny models made in a moment: random weights, real tokenizers, real PEFT adapters."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEXT = " ".join(f"{a}{b} the {b}{a}" for a in "etaoinshrd" for b in "etaoinshrd") * 8
"""A text of words that the tokenizer knows, long enough to measure with."""


def make_base(folder: Path, *, dtype: str = "bfloat16", seed: int = 0, **changes: Any) -> Path:
    """A Llama with random weights: rows of 256 values, and more heads than key-value heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings | changes)).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_tokenizer(folder: Path, *, letters: str = "etaoinshrdlucmfwypvbgkjqxz") -> None:
    """A sentencepiece tokenizer with byte fallback and a chat template, 320 pieces."""
    (folder / "tokenizer.model").write_bytes(trained_tokenizer(letters))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": False,
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )


@cache
def trained_tokenizer(letters: str) -> bytes:
    """The tokenizer.model; the same letters give the same one."""
    import sentencepiece

    text = [f"{a}{b} {b}{a}{c} the {c}{a}" for a in letters for b in letters for c in "aeiou"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        control_symbols=["<|user|>", "<|assistant|>"],
        minloglevel=2,
    )
    return model.getvalue()


def make_adapter(folder: Path, base: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A PEFT LoRA on every linear layer of `base`, with random A and B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    return folder
