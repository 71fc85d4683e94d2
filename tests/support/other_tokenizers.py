"""Rarer inputs: other tuners' adapters, and a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain
from tests.support.roads import shake
from tests.support.tiny import CHAT_TEMPLATE

if TYPE_CHECKING:
    import pytest

VOCABULARY = 320


def make_tuner(folder: Path, base: Path, config: Any) -> Path:
    """An adapter of any of PEFT's kinds, with random values."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), config)
    shake(model)
    model.save_pretrained(folder)
    return folder


def make_bpe(folder: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's kind of tokenizer, trained on a few words.

    llama.cpp's converter recognizes a byte-level tokenizer by its tokens of one long text. A tiny
    tokenizer has other tokens, so the test gives the converter the result.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat and the other cats sat on that mat"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = folder / "config.json"
    content = json.loads(config.read_text())
    if content["model_type"] == "gpt2":  # a key of older transformers that the converter reads
        config.write_text(json.dumps(content | {"n_ctx": 128}))
    with imported(toolchain):
        from conversion import TextModel

        monkeypatch.setattr(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "gpt-2")
