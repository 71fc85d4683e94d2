"""The parts of an architecture that an adapter can change, as settings of a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.architectures import Architecture

STACKED = ["experts.gate_up_proj", "experts.down_proj"]
FEATURES: dict[str, Callable[[Architecture], dict[str, Any]]] = {
    "linear": lambda made: {"target_modules": made.linear, "use_rslora": True},
    "dora": lambda made: {"target_modules": made.linear, "use_dora": True},
    "embedding": lambda made: {"target_modules": [made.embedding]},
    "saved_embedding": lambda made: {
        "target_modules": made.linear,
        "modules_to_save": [made.embedding],
    },
    "experts": lambda made: {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": STACKED,
        "rank_pattern": {"down_proj": 2},
    },
    "only_down": lambda made: {"target_modules": ["o_proj"], "target_parameters": STACKED[1:]},
}


def fits(feature: str, made: Architecture) -> bool:
    """Whether an architecture has a feature.

    Only stacked experts have target_parameters, and PEFT has no DoRA for them.
    """
    if feature in ("experts", "only_down"):
        return made.experts
    return feature != "dora" or not made.experts
