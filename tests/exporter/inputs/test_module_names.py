from __future__ import annotations

import pytest

from exporter.core.errors import AdapterError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.module_names import Names

LAYER = "layers.0.self_attn.q_proj"


def names(tmp_path, *tensors, **config):
    stored = {name: StoredTensor(name, "F32", (4, 4), tmp_path, 0) for name in tensors}
    return Names(Checkpoint(tmp_path, {"architectures": ["NoSuchModel"], **config}, stored))


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (f"model.{LAYER}", f"model.{LAYER}"),
        (LAYER, f"model.{LAYER}"),  # saved without its head
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),  # GPT-2's and BLOOM's own releases
        ("encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.query"),
        (f"language_model.model.{LAYER}", f"model.language_model.{LAYER}"),  # LLaVA, Gemma 3
        (f"model.language_model.{LAYER}", f"language_model.model.{LAYER}"),
        (f"model.language_model.{LAYER}", f"model.{LAYER}"),  # Qwen2.5-VL trained under 4.x
        (f"language_model.model.{LAYER}", f"model.{LAYER}"),  # trained on the text model alone
    ],
)
def test_a_module_is_found_under_the_names_it_may_have(tmp_path, stored, asked):
    found = names(tmp_path, f"{stored}.weight")

    assert found.module(asked) == stored
    assert found.tensor(f"{asked}.weight") == f"{stored}.weight"


@pytest.mark.trained
def test_a_vision_tower_is_not_taken_for_the_text_model(tmp_path):
    found = names(tmp_path, f"vision_tower.vision_model.encoder.{LAYER}.weight")

    assert found.module(f"model.{LAYER}") is None


def test_a_name_that_fits_two_modules_is_refused(tmp_path):
    stored = (f"language_model.model.{LAYER}.weight", f"text_model.{LAYER}.weight")

    with pytest.raises(AdapterError, match=r"could be any of `language_model\.model.*`, `text_m"):
        names(tmp_path, *stored).module(f"model.{LAYER}")


def test_an_exact_name_goes_before_others(tmp_path):
    found = names(tmp_path, f"model.{LAYER}.weight", f"language_model.model.{LAYER}.weight")

    assert found.module(f"model.{LAYER}") == f"model.{LAYER}"


@pytest.mark.lasting
def test_experts_that_are_kept_apart_are_found_in_order(tmp_path):
    parts = ("gate_proj", "up_proj", "down_proj")
    stored = [f"model.layers.0.mlp.experts.{e}.{part}.weight" for e in range(11) for part in parts]
    found = names(tmp_path, *stored).stacked("model.layers.0.mlp.experts", "gate_up_proj")

    assert len(found) == 11
    assert found[10] == (
        "model.layers.0.mlp.experts.10.gate_proj.weight",
        "model.layers.0.mlp.experts.10.up_proj.weight",
    )
