"""Small models of one base with several tokenizers, and the chat templates of their tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.chat_templates import REGULAR
from tests.support.tiny import CHAT_TEMPLATE

Json = dict[str, Any]
CONTEXT = 2048
THINKING = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}"
    "{% endfor %}{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    "{% if date_string is defined %}{{ 'It is ' }}{{ date_string }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
"""Thinking is off by default, and the date appears only if the request gives one."""
TEMPLATES = {
    "with BOS": CHAT_TEMPLATE, "without BOS": REGULAR["chatml"], "switches": THINKING,
    "plain": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
}  # fmt: skip
TALKS: list[list[Json]] = [
    [{"role": "user", "content": "the cat"}],
    [{"role": "system", "content": " be brief "}, {"role": "user", "content": "Hi\n\nthere"}],
    [
        {"role": "user", "content": "what is <|user|> and </s> to you?"},
        {"role": "assistant", "content": "  marks"},
        {"role": "user", "content": "cafe\u0301 ✓"},
    ],
]


def spell(folder: Path) -> None:
    """Give the model a byte-level tokenizer like Qwen's, which first normalizes a text to NFC."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat and the café sat on that mat"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3, 4]}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
