"""Trains the demo's two models: a tiny Llama from scratch, and a LoRA on it with PEFT.

Runs once per machine; the result is cached under a hash of its inputs.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.core.events import Note, Progress, Report, Step
from exporter.core.silence import one_thread
from exporter.demo.corpus import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Speech = Literal["plain", "pirate"]

SEED = 7  # for the initial weights and the order of questions
MODEL = {
    "hidden_size": 256,  # rows of K-quants are whole blocks of 256
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,  # with 0.02, the default, 200 steps reach less
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}
VOCAB = 768  # tokens
BASE_STEPS, BASE_RATE = 140, 2e-3
LORA_STEPS, LORA_RATE = 90, 2e-3
BATCH = 32  # questions
NOISE = 0.04  # of a matrix's standard deviation, added in training: as large as the loss by 4 bits
IGNORED = -100  # torch's label of tokens without loss

USER, ASSISTANT = "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def recipe() -> dict[str, Any]:
    """Everything that decides the trained models, except the machine and the packages."""
    return {
        "model": MODEL,
        "lora": LORA,
        "vocab": VOCAB,
        "steps": (BASE_STEPS, LORA_STEPS),
        "rates": (BASE_RATE, LORA_RATE),
        "batch": BATCH,
        "noise": NOISE,
        "seed": SEED,
        "template": TEMPLATE,
        "corpus": [(fact.questions, fact.plain, fact.pirate) for fact in facts()],
        "code": Path(__file__).read_text(encoding="utf-8"),
    }


def train_base(folder: Path, report: Report) -> None:
    """Write a Llama that answers every question of the corpus, in bf16, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    report(Step("training a tiny base model on facts"))
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        **MODEL,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with one_thread():
        fit(model, tokenizer, "plain", BASE_STEPS, BASE_RATE, report)
    model.to(torch.bfloat16).save_pretrained(folder)


def train_adapter(folder: Path, base: Path, named: str, report: Report) -> None:
    """Write a LoRA, trained on the stored base, that gives the same answers as a pirate.

    named: the base's path in its config, where the base will finally be.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    report(Step("training a LoRA adapter that talks like a pirate"))
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    with one_thread():
        fit(model, load_tokenizer(base), "pirate", LORA_STEPS, LORA_RATE, report)
    model.peft_config["default"].base_model_name_or_path = named
    model.save_pretrained(folder)


def make_tokenizer(folder: Path) -> None:
    """A sentencepiece tokenizer of the corpus, with byte fallback and a chat template."""
    import sentencepiece

    text = [line for fact in facts() for line in (*fact.questions, fact.plain, fact.pirate)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=3,
        control_symbols=[USER, ASSISTANT],
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "additional_special_tokens": [USER, ASSISTANT],
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": MODEL["max_position_embeddings"],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def render(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a chat that ends with `question`."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def examples(tokenizer: Any, speech: Speech) -> list[tuple[list[int], list[int]]]:
    """(ids of the question, ids of the answer with its end) for every question.

    A base also reads, outside any chat, each plain sentence followed by its pirate version: an
    adapter can teach it when to speak so, but hardly words that it never saw. The plain sentence
    comes first so that each word follows from those before it; between two equally likely versions
    the base could not learn to choose.
    """

    def answer_ids(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    conversations = [
        (render(tokenizer, question), answer_ids(fact.plain if speech == "plain" else fact.pirate))
        for fact in facts()
        for question in fact.questions
    ]
    bos = tokenizer.bos_token_id
    sentences = [([bos, *answer_ids(fact.plain)], answer_ids(fact.pirate)) for fact in facts()]
    return conversations + (sentences if speech == "plain" else [])


def fit(
    model: Any, tokenizer: Any, speech: Speech, steps: int, rate: float, report: Report
) -> None:
    """Train the model's trainable parameters to give the corpus's answers."""
    import torch

    pairs = examples(tokenizer, speech)
    shuffle = torch.Generator().manual_seed(SEED)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    order: list[int] = []
    last_loss = math.nan
    model.train()
    began = time.monotonic()
    for step in range(steps):
        if len(order) < BATCH:
            order += torch.randperm(len(pairs), generator=shuffle).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        ids, labels = collate([pairs[index] for index in chosen], tokenizer.pad_token_id)
        with disturbed(model):
            mask = (ids != tokenizer.pad_token_id).long()
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        last_loss = loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(Progress(f"training ({speech})", step + 1, steps, "steps"))
    model.eval()
    report(Note(f"loss {last_loss:.4f} after {steps} steps, {time.monotonic() - began:.0f} s"))


@contextmanager
def disturbed(model: Any) -> Iterator[None]:
    """Shift every matrix a little for one step, so that no answer depends on a weight's last
    bits.
    """
    import torch

    noises: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "lora_" not in name:  # noqa: PLR2004 - a matrix
                noise = torch.randn_like(parameter) * (parameter.std() * NOISE)
                parameter.add_(noise)
                noises.append((parameter, noise))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, noise in noises:
                parameter.sub_(noise)


def collate(
    pairs: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (batch, longest); the question and the padding have no loss."""
    import torch

    longest = max(len(question) + len(reply) for question, reply in pairs)
    ids = torch.full((len(pairs), longest), pad)
    labels = torch.full((len(pairs), longest), IGNORED)
    for row, (question, reply) in enumerate(pairs):
        end = len(question) + len(reply)
        ids[row, :end] = torch.tensor(question + reply)
        labels[row, len(question) : end] = torch.tensor(reply)
    return ids, labels


def answer_with_transformers(
    base: Path, adapter: Path | None, questions: Sequence[str], *, max_tokens: int = 32
) -> list[str]:
    """Greedy answers of transformers, with the adapter applied by peft if one is given."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    answers = []
    for question in questions:
        ids = torch.tensor([render(tokenizer, question)])
        with one_thread(), torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        answers.append(text.strip())
    return answers
