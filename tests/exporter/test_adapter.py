from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.adapter import AdapterSpec, open_adapter, pair_up
from exporter.core.errors import AdapterError, DecantError, UnsupportedError
from exporter.core.safetensors import StoredTensor
from tests.raw import ADAPTER, edit_json, write_adapter, write_safetensors

STEM = "base_model.model.model.layers.0.self_attn.q_proj"


def test_an_adapter_opens_with_its_pairs(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path / "lora"))

    (pair,) = adapter.pairs
    assert pair.module == "model.layers.0.self_attn.q_proj"
    assert (pair.rank, pair.a.shape, pair.b.shape) == (2, (2, 8), (8, 2))
    assert (adapter.base, adapter.name) == ("org/base", "lora")


def test_a_checkpoint_is_called_after_its_run(tmp_path):
    assert (
        open_adapter(write_adapter(tmp_path / "run" / "checkpoint-50")).name == "run-checkpoint-50"
    )


def test_a_missing_config_is_named(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_config.json").unlink()

    with pytest.raises(AdapterError, match=r"adapter_config\.json` is missing"):
        open_adapter(folder)


def test_the_output_folder_of_a_training_run_points_to_its_newest_checkpoint(tmp_path):
    for step in (50, 200, 100):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path / "run")

    assert "checkpoint-200`" in caught.value.hint


def test_a_whole_model_taken_for_an_adapter_is_explained(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path)

    assert "--base alone" in caught.value.hint


def test_missing_weights_and_pickled_weights_are_told_apart(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="is missing"):
        open_adapter(folder)

    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_adapter(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts.down_proj"]},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
        {"kasa_config": {"beta": 1}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
    ],
    ids=str,
)
def test_anything_but_plain_lora_is_refused_by_name(tmp_path, setting):
    folder = write_adapter(tmp_path / "lora", **setting)
    ((name, value),) = setting.items()

    with pytest.raises(UnsupportedError) as caught:
        open_adapter(folder)

    assert str(value) in caught.value.message
    assert name == "peft_type" or name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        {"bias": "none", "modules_to_save": None, "use_dora": False, "kasa_config": None},
        {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.1, "a_key_of_a_later_peft": None},
    ],
    ids=str,
)
def test_plain_lora_is_accepted_in_all_its_spellings(tmp_path, setting):
    assert len(open_adapter(write_adapter(tmp_path / "lora", **setting)).pairs) == 1


@pytest.mark.parametrize(
    ("tensors", "kind", "said"),
    [
        ({f"{STEM}.lora_A.weight": (2, 8)}, AdapterError, "lora_B.weight` is missing"),
        (
            {f"{STEM}.lora_A.weight": (2, 8), f"{STEM}.lora_B.weight": (8, 3)},
            AdapterError,
            "do not fit",
        ),
        ({f"{STEM}.lora_A.weight": (2, 8, 1)}, UnsupportedError, "no plain LoRA matrix"),
        ({f"{STEM}.lora_magnitude_vector": (8,)}, UnsupportedError, "no plain LoRA matrix"),
        ({"base_model.model.embed.lora_embedding_A": (2, 8)}, UnsupportedError, "lora_embedding_A"),
        ({"q_proj.lora_A.weight": (2, 8)}, UnsupportedError, "q_proj"),
        ({}, AdapterError, "holds no tensors"),
    ],
)
def test_every_tensor_is_part_of_a_pair_or_refused_by_name(tmp_path, tensors, kind, said):
    folder = write_adapter(tmp_path / "lora")
    write_safetensors(folder / "adapter_model.safetensors", tensors)

    with pytest.raises(kind, match=said):
        open_adapter(folder)


def test_the_hash_changes_with_config_and_weights(tmp_path):
    adapters = [write_adapter(tmp_path / name) for name in "abc"]
    edit_json(adapters[1] / "adapter_config.json", lora_alpha=5)
    weights = adapters[2] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    assert len({open_adapter(adapter).sha256() for adapter in adapters}) == 3


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from([*ADAPTER, "bias", "use_dora", "modules_to_save"]), VALUES
    )
)
def test_no_config_makes_it_raise_anything_else(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("lora") / "a"
    try:
        assert isinstance(open_adapter(write_adapter(folder, **changes)), AdapterSpec)
    except DecantError:
        pass


def test_pairs_are_matched_whatever_the_order(tmp_path):
    names = [
        f"base_model.model.m.{index}.lora_{half}.weight" for half in "BA" for index in range(3)
    ]
    tensors = {
        name: StoredTensor(name, "F32", (4, 2) if "_B" in name else (2, 4), tmp_path, 0)
        for name in names
    }

    assert {pair.module for pair in pair_up(tensors)} == {"m.0", "m.1", "m.2"}
