"""Adapters with tensor names and settings that PEFT itself does not write."""

from __future__ import annotations

import json

from tests.support.raw import write_adapter, write_safetensors

STEM = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."
A, B = f"{PREFIX}{STEM}.lora_A.weight", f"{PREFIX}{STEM}.lora_B.weight"
SHAPES = {A: (2, 8), B: (8, 2)}


def adapter_of(folder, names, **config):
    write_adapter(folder, **config)
    shapes = dict(zip(names, SHAPES.values(), strict=True))
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    return folder


def changed(folder, name="adapter_config.json", **settings):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder
