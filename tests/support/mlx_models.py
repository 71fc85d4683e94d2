"""Adapters as mlx-lm saves them, with the values of adapters that PEFT saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROLES = {
    "lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m",
    "lora_embedding_A": "lora_a", "lora_embedding_B": "lora_b",
}  # fmt: skip


def mlx_twin(folder: Path, peft: Path, **changes: Any) -> Path:
    """The adapter in `peft` in mlx-lm's layout; all its modules must have one rank."""
    from safetensors.torch import load_file, save_file

    stored = load_file(peft / "adapter_model.safetensors")
    tensors = {}
    for name, values in stored.items():
        role = next(role for role in ROLES if name.endswith(f".{role}"))
        module = name.removeprefix("base_model.model.").removesuffix(f".{role}")
        turned = values.T if values.dim() > 1 else values
        tensors[f"{module}.{ROLES[role]}"] = turned.contiguous()
    trained = json.loads((peft / "adapter_config.json").read_text())
    rank = trained["r"]
    config = {
        "model": trained["base_model_name_or_path"],
        "fine_tune_type": "dora" if trained.get("use_dora") else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "dropout": 0.0, "scale": trained["lora_alpha"] / rank},
        "adapter_path": "adapters",
        "iters": 100,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config | changes, indent=4))
    save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
    return folder
