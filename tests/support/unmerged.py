"""Log-probabilities by transformers, with peft's adapters beside the base, unmerged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Unmerged:
    """A base in float32 and its adapters, each with its name and scale."""

    def __init__(self, base: Path, adapters: Sequence[Path] = ()) -> None:
        """Load the base and the adapters on the CPU."""
        import torch
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.names = [str(number) for number in range(len(adapters))]
        for name, folder in zip(self.names, adapters, strict=True):
            if name == "0":
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
            else:
                model.load_adapter(folder, adapter_name=name)
        self.model = model.eval()
        if adapters:
            model.base_model.set_adapter(self.names)
        self.layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        self.trained = [dict(layer.scaling) for layer in self.layers]

    def logprobs(self, text: Sequence[int], scales: Sequence[float] = ()) -> np.ndarray[Any, Any]:
        """Log-probabilities of the token after each token of the text: (tokens, vocabulary)."""
        import torch

        for layer, trained in zip(self.layers, self.trained, strict=True):
            for name, scale in zip(self.names, scales, strict=True):
                layer.scaling[name] = trained[name] * scale
        with torch.no_grad():
            logits = self.model(torch.tensor([list(text)])).logits[0].double()
        return torch.log_softmax(logits, dim=-1).numpy()

    def tokens(self, text: Sequence[int], scales: Sequence[float] = ()) -> np.ndarray[Any, Any]:
        """The log-probability of each token after the first: (tokens - 1,)."""
        return self.logprobs(text[:-1], scales)[np.arange(len(text) - 1), list(text[1:])]
