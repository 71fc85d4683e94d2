"""LoRAs of tiny models: as PEFT saves them, and transformers' unmerged forward with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from tests.support.architectures import EVERY
from tests.support.logits import Loaded
from tests.support.roads import shake

TOKENS = list(range(5, 21))
CLOSE, FAR = 1e-3, 1e-2  # of the largest logit


def trained(base: Path, name: str, folder: Path, **settings: Any) -> Any:
    """Save an adapter with random values; returns its unmerged model in float32."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    made = EVERY[name]
    kind = getattr(transformers, made.auto)
    given = {"r": 4, "lora_alpha": 6, "task_type": made.task, "target_modules": made.linear}
    torch.manual_seed(2)
    model = get_peft_model(
        kind.from_pretrained(base, dtype=torch.float32), LoraConfig(**given | settings)
    )
    shake(model)
    model.save_pretrained(folder)
    fresh = kind.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(fresh, folder).eval()


def saved(base: Path, name: str, folder: Path, **settings: Any) -> Path:
    """A PEFT adapter with random values, of alpha 6 and rank 4 unless `settings` say otherwise."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    made = EVERY[name]
    torch.manual_seed(2)
    model = getattr(transformers, made.auto).from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 6, "task_type": made.task, "target_modules": made.linear}
    model = get_peft_model(model, LoraConfig(**given | settings))
    shake(model)
    model.save_pretrained(folder)
    return folder


def forward(model: Any) -> np.ndarray[Any, Any]:
    import torch

    ids = torch.tensor([TOKENS])
    extra = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits[0].numpy()


def off(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference, divided by the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def loaded_base(base: Path, toolchain: Any, folder: Path) -> Loaded:
    export(ExportRequest((), base, ("F32",), (folder / "base.gguf",)), toolchain)
    return Loaded(toolchain, folder / "base.gguf")


def save(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "use_rslora": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"base_model.model.{name}": values.contiguous() for name, values in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder
