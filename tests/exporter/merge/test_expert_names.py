"""Experts that a checkpoint keeps under other names than transformers, against PEFT's merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.architectures import STACKED, make_architecture
from tests.support.roads import train_and_merge

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

TARGETED = {
    "granitemoe": ["experts.gate_up_proj", "experts.down_proj"],
    "nemotron_h": ["experts.up_proj", "experts.down_proj"],
    "jetmoe": ["input_linear.weight", "output_linear.weight"],
    "aria": ["experts.gate_up_proj", "experts.down_proj"],
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = make_architecture(name, folder / "base", dtype="float32")
        return made[name]

    return make


@pytest.mark.parametrize("name", TARGETED)
def test_parameters_that_the_checkpoint_calls_otherwise_are_merged_as_by_peft(
    base_of, tmp_path, name
):
    from peft import LoraConfig

    settings = {"target_modules": STACKED[name].linear, "target_parameters": TARGETED[name]}

    found = train_and_merge(base_of(name), LoraConfig(task_type="CAUSAL_LM", **settings), tmp_path)

    assert found.error < 1e-5
    assert found.peft_error < 1e-5
    assert found.error < found.effect / 1000


@pytest.mark.parametrize("modules", [["experts"], ["layers.0.mlp"]])
def test_experts_that_were_trained_whole_replace_those_of_the_checkpoint(
    base_of, tmp_path, modules
):
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=modules)

    found = train_and_merge(base_of("qwen3_moe"), config, tmp_path)

    assert found.error < 1e-5
    assert found.error < found.effect / 1000
