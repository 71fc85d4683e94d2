"""Recognizes a folder that is not a base model: an adapter, another format …"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from exporter.core.atomic_file import is_there
from exporter.core.errors import CheckpointError, InputError

ADAPTER_CONFIG = "adapter_config.json"
ORIGINAL = ("params.json", "consolidated*")
"""Files of the format that Meta and Mistral publish beside the one for transformers."""
OTHERS = {
    "model_index.json": "is a model of Diffusers', which makes pictures",
    "lit_model.pth": "is in LitGPT's form",
    "mlx_model.safetensors": "is in MLX's form",
    "weights.npz": "is in MLX's form",
}
UNMERGED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB])\.(default$|default\.|weight$)")
"""PEFT's names; jina-embeddings-v3, Granite's switches and Phi-4 multimodal have adapters under
other names, which belong to the model.
"""


def not_a_model(folder: Path) -> CheckpointError | None:
    """The error for a folder without config.json whose contents are recognized."""
    if is_there(folder / ADAPTER_CONFIG):
        return CheckpointError(
            f"`{folder}` is an adapter, no base model",
            hint="pass the model that it was trained on as --base; where it is one of two"
            f" adapters on that model, `decant export {shlex.quote(str(folder))} --adapter OTHER`"
            " merges both",
        )
    here = [next(folder.glob(pattern), None) for pattern in ORIGINAL]
    if all(here):
        return CheckpointError(
            f"`{folder}` holds the model in its publisher's own form ({here[0].name},"  # type: ignore[union-attr]
            f" {here[1].name}), which decant does not read",  # type: ignore[union-attr]
            hint="take the files for transformers, config.json and model*.safetensors: the same"
            " repo on the hub has them, and `decant pull ORG/NAME` downloads them",
        )
    for name, what in OTHERS.items():
        if is_there(folder / name):
            return CheckpointError(
                f"`{folder}` {what}",
                hint="pass the same model in the form of transformers, with config.json and"
                " model*.safetensors",
            )
    return None


def refuse_unmerged(names: Iterable[str], folder: Path, error: type[InputError]) -> None:
    """Raise `error` for a whole model that was saved with PEFT's layers in it."""
    found = next((name for name in names if UNMERGED.search(name)), None)
    if found is None:
        return
    raise error(
        f"`{folder}` holds a model with an adapter in it that is not merged (`{found}`)",
        hint=f"put the {ADAPTER_CONFIG} of the training into it, name it as the adapter and the"
        f" model that training began with as --base: `decant export {shlex.quote(str(folder))}"
        " --base BASE`",
    )
