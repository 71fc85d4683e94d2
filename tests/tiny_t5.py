"""Tiny encoder-decoder models: random or taught a few answers, with their own tokenizers."""

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
    """A tokenizer as T5 has it, saved; how many pieces it has."""
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


def make_t5(folder: Path, kind: str, *, spread: float) -> Path:
    """A T5 or an MT5 in float32; with the right spread its answers are not one token repeated."""
    import torch
    import transformers

    size = make_unigram(folder)
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(vocab_size=size, **SIZE)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
        # else the last token is what the next one is most like: the head is the embedding
        model.shared.weight.mul_(0.01)
    model.save_pretrained(folder)
    return folder


def adapt_t5(base: Path, folder: Path) -> Any:
    """A LoRA on all linear layers with random values, saved; the model that holds it, unmerged."""
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


def teach_t5(folder: Path, answers: Mapping[str, str]) -> Path:
    """An MT5 with a token for every byte that has learned these answers by heart."""
    import sentencepiece
    import torch
    from transformers import MT5Config, MT5ForConditionalGeneration

    size = make_unigram(folder, bytes_too=True)
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    torch.manual_seed(0)
    model = MT5ForConditionalGeneration(MT5Config(vocab_size=size, **SIZE, dropout_rate=0.0))
    questions, labels = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([*pieces.encode(text), 1]) for text in texts],
            batch_first=True,
            padding_value=padding,
        )
        for texts, padding in ((answers.keys(), 0), (answers.values(), -100))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(
            input_ids=questions, attention_mask=(questions != 0).long(), labels=labels
        ).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
