"""PEFT's other tuners, merged one module at a time, against PEFT's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.inputs.adapter_kinds import BY_REPLACEMENT, MERGED_BY_PEFT, REFUSED
from tests.support.roads import train_and_merge
from tests.support.tiny import make_base

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"target_modules": ["q_proj", "v_proj"], "total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 32},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"r": 8, "gralora_k": 2},
    "HRA": {"r": 4},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 32},
    "RANDLORA": {"r": 8},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [21, 28]},
    "VBLORA": {"num_vectors": 16, "vector_length": 64, "topk": 2},
    "WAVEFT": {"n_frequency": 64},
}
DEFAULT = {"target_modules": ["q_proj", "down_proj"]}
KINDS = (*MERGED_BY_PEFT, *BY_REPLACEMENT)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """With and without biases: some tuners scale those, too."""
    folder = tmp_path_factory.mktemp("bases")
    size = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256}
    return {
        biased: make_base(folder / str(biased), attention_bias=biased, **size)
        for biased in (False, True)
    }


def config(kind: str) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    settings = DEFAULT | SETTINGS.get(kind, {})
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type="CAUSAL_LM", **settings)


def test_vb_lora_that_kept_only_its_largest_logits_is_merged_too(bases, tmp_path):
    from peft import VBLoRAConfig

    settings = DEFAULT | SETTINGS["VBLORA"] | {"save_only_topk_weights": True}

    found = train_and_merge(bases[False], VBLoRAConfig(task_type="CAUSAL_LM", **settings), tmp_path)

    assert found.differing == []
    assert found.error < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuner_merges_to_pefts_bytes_and_answers_as_unmerged(bases, tmp_path, kind):
    found = train_and_merge(bases[False], config(kind), tmp_path)

    assert found.differing == []
    assert found.error < 2e-5
    assert found.effect > 100 * found.error


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuner_rounds_as_peft_does_in_the_bases_own_type(bases, tmp_path, kind):
    found = train_and_merge(bases[True], config(kind), tmp_path, dtype="base")

    assert found.differing == []


def test_every_tuner_of_peft_is_merged_or_refused_with_a_reason():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    prefixes = {kind.value: prefix for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items()}

    assert known == {"LORA", *KINDS, *REFUSED}
    for kind, prefix in MERGED_BY_PEFT.items():
        assert prefixes[kind].startswith(prefix)


def test_a_tuners_missing_tensor_is_noticed(bases, tmp_path):
    """PEFT itself would go on with the value it begins a training with."""
    from safetensors.torch import load_file, save_file

    from exporter.core.errors import AdapterError

    def cut(adapter: Path) -> None:
        weights = adapter / "adapter_model.safetensors"
        tensors = load_file(weights)
        tensors.pop(
            next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.hada_w1_a"))
        )
        save_file(tensors, weights)

    with pytest.raises(AdapterError, match="hada_w1_a"):
        train_and_merge(bases[False], config("LOHA"), tmp_path, rename=cut)
