"""Bases with any settings and random weights: transformers' logits, and the GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.support.tiny import make_tokenizer

TOKENS = [(number * 37) % 290 + 5 for number in range(24)]
CLOSE = 1e-3  # of the largest logit: llama.cpp looks GELU up in a table of 16 bits
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 48, "num_key_value_heads": 4, "head_dim": 16,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "full_attention_interval": 2,
}  # fmt: skip
INDEX = {"index_topk": 4, "index_n_heads": 32, "index_head_dim": 64}
"""An indexer that leaves most tokens out. With fewer heads, many scores would be equal, at 0."""
Config = Callable[[Any], Any]


def make_model(config: Any, folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    """Save a base with random weights in float32; returns it as transformers loads it."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, auto)
    model = kind.from_config(config)
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if values.is_floating_point() and "inv_freq" not in name:
                values.add_(torch.randn_like(values) * 0.1)
    model.float().save_pretrained(folder)
    make_tokenizer(folder)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def forward(model: Any) -> np.ndarray[Any, Any]:
    import torch

    more = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS]), use_cache=False, **more).logits[0].numpy()


def exported(base: Path, toolchain: Any, output: Path) -> list[Any]:
    """Write the base as a GGUF in float32; returns the reported events."""
    events: list[Any] = []
    export(ExportRequest((), base, ("F32",), (output,)), toolchain, report=events.append)
    return events


def off(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference, divided by the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
