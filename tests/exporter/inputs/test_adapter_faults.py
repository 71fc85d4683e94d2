"""An adapter that is not what its base needs: each fault, at each of its tensors, is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.core.errors import AdapterError, CheckpointError, DecantError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import MergePlan, WeightedAdapter
from tests.support.raw import ADAPTER, CONFIG, write_safetensors

WIDTH, INNER, TOKENS, RANK = 8, 12, 16, 2
LAYER = "model.layers.0"
BASE = {
    "model.embed_tokens.weight": (TOKENS, WIDTH),
    f"{LAYER}.self_attn.q_proj.weight": (WIDTH, WIDTH),
    f"{LAYER}.self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
    f"{LAYER}.mlp.down_proj.weight": (WIDTH, INNER),
    f"{LAYER}.mlp.down_proj.bias": (WIDTH,),
    "lm_head.weight": (TOKENS, WIDTH),
}
PREFIX = "base_model.model"
TENSORS = {
    f"{PREFIX}.{LAYER}.self_attn.q_proj.lora_A.weight": (RANK, WIDTH),
    f"{PREFIX}.{LAYER}.self_attn.q_proj.lora_B.weight": (WIDTH, RANK),
    f"{PREFIX}.{LAYER}.self_attn.k_proj.lora_A.weight": (RANK, WIDTH),
    f"{PREFIX}.{LAYER}.self_attn.k_proj.lora_B.weight": (WIDTH // 2, RANK),
    f"{PREFIX}.{LAYER}.mlp.down_proj.lora_A.weight": (RANK, INNER),
    f"{PREFIX}.{LAYER}.mlp.down_proj.lora_B.weight": (WIDTH, RANK),
    f"{PREFIX}.{LAYER}.mlp.down_proj.base_layer.bias": (WIDTH,),
    f"{PREFIX}.model.embed_tokens.lora_embedding_A": (RANK, TOKENS),
    f"{PREFIX}.model.embed_tokens.lora_embedding_B": (WIDTH, RANK),
    f"{PREFIX}.lm_head.weight": (TOKENS, WIDTH),
}
SETTINGS = {"r": RANK, "modules_to_save": ["lm_head"], "bias": "lora_only"}
MATRICES = [name for name in TENSORS if "lora_" in name]


def planned(folder: Path, tensors, **config) -> MergePlan:
    base, adapter = folder / "base", folder / "lora"
    for made in (base, adapter):
        made.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(base / "model.safetensors", BASE)
    (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER | SETTINGS | config))
    write_safetensors(adapter / "adapter_model.safetensors", tensors)
    return plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])


def test_the_adapter_without_a_fault_changes_all_it_names(tmp_path):
    assert set(planned(tmp_path, TENSORS).changes) == set(BASE)


@pytest.mark.trained
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_a_renamed_tensor_is_refused(tmp_path, name):
    stem, leaf = name.rsplit(".", 2 if name.endswith("weight") else 1)[0], name
    renamed = {
        key.replace(stem, f"{stem}_x") if key == leaf else key: TENSORS[key] for key in TENSORS
    }
    assert renamed.keys() != TENSORS.keys()

    with pytest.raises(DecantError):
        planned(tmp_path, renamed)


@pytest.mark.parametrize("name", MATRICES)
def test_a_missing_half_is_named(tmp_path, name):
    with pytest.raises(AdapterError, match=name.rpartition(".lora_")[0].rpartition(".")[2]):
        planned(tmp_path, {key: shape for key, shape in TENSORS.items() if key != name})


@pytest.mark.parametrize("name", TENSORS)
def test_a_transposed_tensor_is_refused(tmp_path, name):
    shape = TENSORS[name][::-1] if len(TENSORS[name]) > 1 else (1, *TENSORS[name])

    with pytest.raises(DecantError):
        planned(tmp_path, TENSORS | {name: shape})


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("change", [1, -1])
def test_a_tensor_of_another_size_is_refused(tmp_path, name, change):
    """In each of its dimensions: another rank, another width, another vocabulary."""
    for dimension in range(len(TENSORS[name])):
        shape = tuple(n + change * (d == dimension) for d, n in enumerate(TENSORS[name]))
        folder = tmp_path / str(dimension)
        folder.mkdir()

        with pytest.raises(AdapterError):
            planned(folder, TENSORS | {name: shape})


@pytest.mark.lasting
@pytest.mark.parametrize(
    "name",
    [
        f"{PREFIX}.{LAYER}.self_attn.q_proj.lora_magnitude_vector",
        f"{PREFIX}.{LAYER}.self_attn.q_proj.lora_C.weight",
        f"{PREFIX}.{LAYER}.mlp.norm.weight",
        f"{PREFIX}.{LAYER}.self_attn.q_proj.lora_A.default.weight",
        "something",
    ],
)
def test_an_extra_tensor_is_named(tmp_path, name):
    with pytest.raises(DecantError) as caught:
        planned(tmp_path, TENSORS | {name: (WIDTH,)})

    assert name.removeprefix(f"{PREFIX}.") in caught.value.message


def test_an_adapter_does_not_fit_a_base_of_another_size(tmp_path):
    wider = {name: tuple(2 * n for n in shape) for name, shape in TENSORS.items()}

    with pytest.raises(AdapterError, match="was trained on another base"):
        planned(tmp_path, wider, r=2 * RANK)


@pytest.mark.trained
@pytest.mark.parametrize("name", TENSORS)
def test_a_value_that_is_no_number_is_found(tmp_path, name):
    import torch
    from safetensors.torch import load_file, save_file

    from exporter.merge.apply import MergedTensors

    planned(tmp_path, TENSORS)
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = {key: torch.ones_like(value) for key, value in load_file(weights).items()}
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, weights)
    plan = plan_merge(
        open_checkpoint(tmp_path / "base"), [WeightedAdapter(open_adapter(tmp_path / "lora"))]
    )
    merged = MergedTensors(plan)

    with pytest.raises((AdapterError, CheckpointError), match="NaN"):
        for key in merged.names:
            merged.read(key)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = [
    "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "use_dora", "modules_to_save", "bias", "trainable_token_indices",
    "target_parameters", "base_model_name_or_path", "init_lora_weights", "fan_in_fan_out",
    "ensure_weight_tying", "layers_to_transform", "lora_bias", "peft_version", "task_type",
]  # fmt: skip


@pytest.mark.trained
@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_no_config_makes_planning_raise_anything_else(tmp_path_factory, changes):
    try:
        planned(tmp_path_factory.mktemp("fuzz"), TENSORS, **changes)
    except DecantError:
        pass
