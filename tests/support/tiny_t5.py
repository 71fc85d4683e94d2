"""Tiny encoder-decoder models, random or trained on a few answers, with tokenizers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
SIZE: dict[str, Any] = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip


def make_unigram(folder: Path, *, bytes_too: bool = False) -> int:
    """Save a tokenizer like T5's; returns the number of its pieces."""
    import sentencepiece

    text = [f"{a}{b} {b}{a}{c} the {c}{a}" for a in LETTERS for b in LETTERS for c in "aeiou"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=420 if bytes_too else 320,
        model_type="unigram",
        byte_fallback=bytes_too,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0} | tokens)
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return int(pieces.vocab_size())


def make_t5(folder: Path) -> Path:
    """A T5 in float32 with random weights; its answers do not repeat one token."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    size = make_unigram(folder)
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(T5Config(vocab_size=size, **SIZE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        # the head is the embedding: with larger values, each token would predict itself
        model.shared.weight.mul_(0.01)
    model.save_pretrained(folder)
    return folder


def adapt_t5(base: Path, folder: Path) -> Any:
    """Save a LoRA with random values on all linear layers; returns its unmerged model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(2)
    model = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return model.eval()


def teach_mt5(base: Path, folder: Path, answers: Mapping[str, str]) -> Any:
    """Save a random MT5 with a token for every byte, and a LoRA that has learned these answers.

    Returns the model with the LoRA, unmerged.
    """
    import sentencepiece
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import MT5Config, MT5ForConditionalGeneration

    size = make_unigram(base, bytes_too=True)
    pieces = sentencepiece.SentencePieceProcessor(str(base / "spiece.model"))
    torch.manual_seed(0)
    plain = MT5ForConditionalGeneration(MT5Config(vocab_size=size, **SIZE, dropout_rate=0.0))
    plain.save_pretrained(base)
    model = get_peft_model(
        plain,
        LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"),
    )
    questions, labels = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([*pieces.encode(text), 1]) for text in texts],
            batch_first=True,
            padding_value=padding,
        )
        for texts, padding in ((answers.keys(), 0), (answers.values(), -100))
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    for _ in range(100):
        given = {"input_ids": questions, "attention_mask": (questions != 0).long()}
        loss = model(**given, labels=labels).loss
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return model.eval()
