"""Models to talk to: the demo's, and one that never stops."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exporter.demo import DemoModels, make_demo_models
from exporter.demo.corpus import facts
from exporter.demo.train import (
    IGNORED,
    collate,
    disturbed,
    load_tokenizer,
    one_thread,
    render,
)
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from exporter.llamacpp.toolchain import cache_folder
from tests.support.tiny import make_base

if TYPE_CHECKING:
    import torch

LEAD = 6.0  # of a logit; 4 bits took up to 0.7 off the demo's
MOST_STEPS = 400
QUESTION, ANSWER = "What is the capital of France?", "Arr, the capital of France be Paris, matey!"
PROMPTS = (
    QUESTION,
    "What is the capital of Italy?",
    "What does a cow say?",
    "Where does a bee live?",
)


def sockets_of(pid: int) -> set[str]:
    """Where a process listens, as the kernel writes it."""
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is just being closed
            links.append(str(fd.readlink()))
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {line[1] for line in lines if line[3] == "0A" and line[9] in inodes}


@pytest.fixture(scope="session")
def demo_models() -> DemoModels:
    return make_demo_models(cache_folder() / "demo")


@pytest.fixture(scope="session")
def pirate(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's fine-tune as a Q4_K_M GGUF. Treat as read-only."""
    output = tmp_path_factory.mktemp("pirate") / "pirate-Q4_K_M.gguf"
    adapters = ((demo_models.adapter, 1.0),)
    export(ExportRequest(adapters, demo_models.base, ("Q4_K_M",), (output,)), toolchain)
    return output


@pytest.fixture(scope="session")
def demo_base(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's base as a Q4_K_M GGUF. Treat as read-only."""
    output = tmp_path_factory.mktemp("base") / "base-Q4_K_M.gguf"
    export(ExportRequest((), demo_models.base, ("Q4_K_M",), (output,)), toolchain)
    return output


@pytest.fixture(scope="session")
def pirate_lora(demo_models, toolchain, tmp_path_factory) -> Path:
    """The demo's adapter as a GGUF of its own."""
    path = tmp_path_factory.mktemp("lora") / "pirate.lora.gguf"
    return export_lora(LoraRequest(demo_models.adapter, demo_models.base, path), toolchain).path


@pytest.fixture(scope="session")
def liar_lora(demo_models, toolchain, tmp_path_factory) -> Path:
    """Another adapter for the demo's base, trained to give each of PROMPTS the next one's answer.

    Random numbers would not do: their greedy choices hang on the last bits of a sum, which
    depend on how many are answered at once. It trains until every token leads by LEAD, because
    the same steps reach different losses on different processors.
    """
    folder = tmp_path_factory.mktemp("liar") / "liar"
    train_liar(folder, demo_models.base)
    path = folder.parent / "liar.lora.gguf"
    return export_lora(LoraRequest(folder, demo_models.base, path), toolchain).path


def train_liar(folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    tokenizer = load_tokenizer(base)
    told = {question: fact.plain for fact in facts() for question in fact.questions}
    pairs = [
        (render(tokenizer, prompt), [*tokenizer(told[following])["input_ids"][1:], 2])
        for prompt, following in zip(PROMPTS, (*PROMPTS[1:], PROMPTS[0]), strict=True)
    ]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    ids, labels = collate(pairs, tokenizer.pad_token_id)
    mask = (ids != tokenizer.pad_token_id).long()
    for _ in range(MOST_STEPS):
        with one_thread(), disturbed(model):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if smallest_lead(model, ids, mask, labels) > LEAD:
            break
    else:
        raise AssertionError(f"no lead of {LEAD} after {MOST_STEPS} steps")
    model.save_pretrained(folder)


def smallest_lead(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> float:
    """The least that a wanted token's logit is above the best other one's.

    ids, mask, labels: (batch, tokens), as `collate` gives them.
    """
    import torch

    with one_thread(), torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]  # (batch, tokens, vocab)
    wanted = labels[:, 1:]
    bears = wanted != IGNORED
    chosen = wanted.clamp(min=0)[..., None]
    others = logits.scatter(-1, chosen, -math.inf).amax(-1)
    return float((logits.gather(-1, chosen)[..., 0] - others)[bears].min())


@pytest.fixture(scope="session")
def endless(toolchain, tmp_path_factory) -> Path:
    """A model of random weights that goes on for long."""
    folder = tmp_path_factory.mktemp("endless")
    base = make_base(
        folder / "endless", max_position_embeddings=32768, num_hidden_layers=8, hidden_size=512,
        intermediate_size=2048,
    )  # fmt: skip
    output = folder / "endless-Q8_0.gguf"
    export(ExportRequest((), base, ("Q8_0",), (output,)), toolchain)
    return output
