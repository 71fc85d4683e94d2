"""Adapters of many kinds for one base, and what transformers and peft make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.tiny import make_adapter

PATTERNS = {"rank_pattern": {"q_proj": 4, "down_proj": 2}, "alpha_pattern": {"up_proj": 48}}
SERVED: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns-rslora": {**PATTERNS, "use_rslora": True},
    "ends": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "rank-512": {"r": 512, "lora_alpha": 512, "target_modules": ["q_proj"]},
    "one-layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "bias-of-none": {"bias": "all"},  # a Llama has none
}
"""Settings of PEFT that `--to vllm` takes."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "lora-bias": ({"lora_bias": True}, "does not support LoRA bias"),
    "activated": ({"alora_invocation_tokens": [5, 6]}, "does not support Activated LoRA"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "whole-head": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "rows": ({"trainable_token_indices": [5, 6]}, "trainable_tokens_delta is unsupported"),
    "rank-513": ({"r": 513, "target_modules": ["q_proj"]}, "513 is greater than max_lora_rank 512"),
    "layers-twice": ({"layer_replication": [[0, 4], [2, 4]]}, "layer_replication"),
    "blocks": (
        {
            "target_modules": ["o_proj"],
            "use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["o_proj"]},
        },
        "block-diagonal",
    ),
}
"""Settings that it refuses, and words of vLLM's own refusal."""


def adapters_of(kinds: Mapping[str, Mapping[str, Any]], root: Path, base: Path) -> dict[str, Path]:
    """An adapter of random numbers for each kind, saved by PEFT."""
    return {name: make_adapter(root / name, base, **given) for name, given in kinds.items()}


def scaling_activations(folder: Path, base: Path) -> Path:
    """IA3, which has no A and B."""
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    names = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    get_peft_model(model, IA3Config(task_type="CAUSAL_LM", **names)).save_pretrained(folder)
    return folder


def with_two_words_more(folder: Path, base: Path) -> Path:
    """A LoRA trained on the base with two more tokens, saved with both ends."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    get_peft_model(model, settings).save_pretrained(folder, save_embedding_layers=True)
    return folder


class Oracle:
    """The base in float32, as transformers computes it, with any adapter, as peft applies it."""

    def __init__(self, base: Path) -> None:
        """Name the base; it is loaded anew for each adapter, as some change it."""
        self.base = base

    def model(self, adapter: Path | None, scale: float) -> Any:
        import torch
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        if scale != 1:
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    module.scale_layer(scale)
        return model.eval()

    def says(self, adapter: Path | None, prompts: Sequence[str], scale: float = 1) -> list[str]:
        """The greedy answers."""
        import torch

        from exporter.demo.train import load_tokenizer, render

        tokenizer, model, found = load_tokenizer(self.base), self.model(adapter, scale), []
        for prompt in prompts:
            ids = torch.tensor([render(tokenizer, prompt)])
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24,
                    do_sample=False,
                )  # fmt: skip
            found.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        return found

    def likelihoods(
        self, adapter: Path | None, ids: Sequence[int], scale: float = 1
    ) -> list[float]:
        """How likely each token but the first is after those before it, in nats."""
        import torch

        with torch.inference_mode():
            logits = self.model(adapter, scale)(torch.tensor([list(ids)])).logits[0]
        known = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(list(ids[1:]))[:, None])
        return [float(value) for value in known[:, 0]]
