"""Removes the names that wrappers leave in a model's tensors: DDP, torch.compile, FSDP, TRL …"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from exporter.inputs.lazy_tensor import Tensor, renamed

INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Prefixes of any module's name: torch.compile, FSDP and activation checkpointing."""
AROUND = re.compile(r"^((module|_forward_module|pretrained_model)\.)+")
"""Prefixes of all names: DDP and DeepSpeed, Lightning, and TRL's models with a value head."""
PEFT = "base_model.model."
VALUE_HEAD = ("v_head.", "value_head.")
"""Start of the names of PPO's value head, which scores texts."""


def without_wrappers(name: str) -> str:
    """A tensor's name in the model itself; PEFT's prefix stays in front.

    `module.base_model.model._orig_mod.model.norm.weight` → `base_model.model.model.norm.weight`.
    """
    name = AROUND.sub("", INSIDE.sub("", name))
    inner = name.removeprefix(PEFT)
    return name if inner == name else PEFT + AROUND.sub("", inner)


def is_value_head(name: str) -> bool:
    return AROUND.sub("", name).startswith(VALUE_HEAD)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole model's tensors under their plain names, if all of them have a wrapper's prefix.

    Shapes, (rows, columns) for a matrix, stay the same. A prefix of only some tensors is no
    wrapper's: such a checkpoint stays unchanged.
    """
    names = [name for name in tensors if not is_value_head(name)]
    plain = {name: plain_name(name) for name in names}
    if lightning(plain.values()):
        plain = {name: new.removeprefix("model.") for name, new in plain.items()}
    is_wrapped = [name != plain[name] for name in names]
    around = [AROUND.match(name) is not None or name.startswith(PEFT) for name in names]
    if not any(is_wrapped) or (any(around) and not all(around)) or clash(plain.values()):
        return dict(tensors)
    heads = {name: AROUND.sub("", name) for name in tensors if is_value_head(name)}
    return {new: renamed(tensors[name], new) for name, new in (plain | heads).items()}


def plain_name(name: str) -> str:
    return without_wrappers(name).removeprefix(PEFT)


def lightning(names: Iterable[str]) -> bool:
    """Whether a Lightning module holds a language model as its attribute `model`."""
    found = list(names)
    return "model.lm_head.weight" in found and all(name.startswith("model.") for name in found)


def clash(names: Iterable[str]) -> bool:
    found = list(names)
    return len(set(found)) < len(found)
