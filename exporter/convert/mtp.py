"""Layers for multi-token prediction (MTP), which follow a model's layers.

Published checkpoints have them (DeepSeek, GLM, Qwen3-Next and 3.5, Nemotron-H …). transformers has
no classes for them, so a trainer's checkpoint lacks them while its config still counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
"""Config entries with their number."""
OWN_NAME = re.compile(r"(^|\.)mtp\.")
LAYER = re.compile(r"(^|\.)layers\.(?P<number>\d+)\.")
OWN_PARTS = (".eh_proj.", ".enorm.", ".hnorm.", ".shared_head.")
"""Parts that only such a layer has."""


def settle_prediction(hparams: dict[str, Any], names: Iterable[str]) -> str:
    """Set the number of prediction layers in the config to that in the checkpoint.

    names: the tensors' names. Returns a note for the user, or an empty text.
    """
    names = tuple(names)
    text = hparams.get("text_config")
    parts = [hparams, text] if isinstance(text, dict) else [hparams]
    declared = sum(int(part.get(count) or 0) for part in parts for count in COUNTS)
    if has_prediction(names):
        numbers = appended(names)
        if not declared and numbers:
            parts[-1][COUNTS[0]] = len(numbers)
        return ""
    for part in parts:
        part.update({count: 0 for count in COUNTS if count in part})
    return (
        "config.json counts layers for multi-token prediction, which the weights do not have"
        " (trainers do not save them): the GGUF has none, and answers are the same"
        if declared
        else ""
    )


def has_prediction(names: Iterable[str]) -> bool:
    """Whether some tensors belong to layers for multi-token prediction."""
    return any(OWN_NAME.search(name) or is_own_part(name) for name in names)


def appended(names: Iterable[str]) -> set[str]:
    """The numbers of prediction layers that continue the numbering of the model's layers."""
    return {
        found["number"]
        for name in names
        if is_own_part(name) and not OWN_NAME.search(name) and (found := LAYER.search(name))
    }


def is_own_part(name: str) -> bool:
    return any(part in name for part in OWN_PARTS)


def without_prediction(model_class: Any) -> Any:
    """The converter's class with `--no-mtp`: it neither expects nor counts prediction layers.

    It is a subclass, since the converter stores its filters on the class.
    """
    own = {"no_mtp": True, "model_arch": model_class.model_arch}
    return type(model_class.__name__, (model_class,), own)
