from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.core.errors import AdapterError, DecantError, UnsupportedError
from exporter.core.safetensors import StoredTensor
from exporter.inputs.adapter import open_adapter, sort_tensors
from exporter.inputs.adapter_spec import AdapterSpec, scaling_of
from tests.support.raw import ADAPTER, edit_json, write_adapter, write_safetensors

STEM = "base_model.model.model.layers.0.self_attn.q_proj"


def test_an_adapter_opens_with_its_pairs(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path / "lora"))

    (pair,) = adapter.pairs
    assert pair.module == "model.layers.0.self_attn.q_proj"
    assert (pair.rank, pair.a.shape, pair.b.shape) == (2, (2, 8), (8, 2))
    assert (adapter.base, adapter.name) == ("org/base", "lora")


def test_a_checkpoint_is_called_after_its_run(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path / "run" / "checkpoint-50"))

    assert adapter.name == adapter.exact_name == "run-checkpoint-50"
    assert adapter.checkpoint == ""  # the user named it


def test_a_missing_config_is_named(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_config.json").unlink()

    with pytest.raises(AdapterError, match=r"adapter_config\.json` is missing"):
        open_adapter(folder)


def test_a_training_runs_folder_stands_for_its_newest_checkpoint_and_says_so(tmp_path):
    for step in (50, 200, 100):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "checkpoint-300").mkdir()  # killed before it saved anything
    said = []

    adapter = open_adapter(tmp_path / "run", report=said.append)

    assert adapter.name == "run"
    assert (adapter.exact_name, adapter.checkpoint) == ("run-checkpoint-200", "checkpoint-200")
    assert any("checkpoint-200" in event.message for event in said)


def test_a_runs_own_adapter_goes_before_its_checkpoints(tmp_path):
    write_adapter(tmp_path / "run")
    write_adapter(tmp_path / "run" / "checkpoint-50")

    assert open_adapter(tmp_path / "run").name == "run"


def test_a_whole_model_taken_for_an_adapter_is_explained(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path)

    assert f"`decant export {tmp_path}`" in caught.value.hint


def test_missing_weights_are_named(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="is missing"):
        open_adapter(folder)


@pytest.mark.trained
def test_pickled_weights_are_read_and_never_run(tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = write_adapter(tmp_path / "lora")
    whole = open_adapter(folder)
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()

    pickled = open_adapter(folder)

    assert [pair.module for pair in pickled.pairs] == [pair.module for pair in whole.pairs]
    assert pickled.pairs[0].a.shape == whole.pairs[0].a.shape
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02pickle")
    with pytest.raises(AdapterError, match="refused"):
        open_adapter(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": "XLORA"},
        {"peft_type": "FROD"},
        {"peft_type": "NEW_IDEA"},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"arrow_config": {"top_k": 3}},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "new_idea"},
    ],
    ids=str,
)
def test_what_no_merge_can_hold_is_refused_by_name(tmp_path, setting):
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
        ({f"{STEM}.lora_A.weight": (2, 8, 1)}, UnsupportedError, "not a plain LoRA matrix"),
        ({f"{STEM}.lora_magnitude_vector": (8,)}, AdapterError, "lora_A.weight` is missing"),
        (
            {
                f"{STEM}.lora_A.weight": (2, 8),
                f"{STEM}.lora_B.weight": (8, 2),
                f"{STEM}.lora_magnitude_vector": (8,),
            },
            AdapterError,
            "lora_magnitude_vector`, which its config does not mention",
        ),
        ({"base_model.model.embed.lora_embedding_A": (2, 8)}, AdapterError, "lora_embedding_B"),
        ({"q_proj.lora_A.weight": (2, 8)}, AdapterError, "q_proj.lora_B.weight` is missing"),
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


@pytest.mark.lasting
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


def test_what_peft_saves_twice_is_taken_once(tmp_path):
    """save_embedding_layers writes the wrappers' names beside the plain one."""
    folder = write_adapter(tmp_path / "lora", modules_to_save=["lm_head"])
    pair = {f"{STEM}.lora_A.weight": (2, 8), f"{STEM}.lora_B.weight": (8, 2)}
    plain = "base_model.model.lm_head"
    copies = [f"{plain}.{word}.weight" for word in ("modules_to_save", "original_module")]
    weights = folder / "adapter_model.safetensors"

    write_safetensors(weights, pair | dict.fromkeys([f"{plain}.weight", *copies], (16, 8)))
    assert list(open_adapter(folder).values) == ["lm_head.weight"]

    write_safetensors(weights, pair | dict.fromkeys(copies[:1], (16, 8)))
    assert list(open_adapter(folder).values) == ["lm_head.weight"]


def test_pairs_are_matched_whatever_the_order(tmp_path):
    names = [
        f"base_model.model.m.{index}.lora_{half}.weight" for half in "BA" for index in range(3)
    ]
    tensors = {
        name: StoredTensor(name, "F32", (4, 2) if "_B" in name else (2, 4), tmp_path, 0)
        for name in names
    }

    opened = sort_tensors(AdapterSpec(tmp_path, {"peft_type": "LORA"}, ()), tensors)

    assert {pair.module for pair in opened.pairs} == {"m.0", "m.1", "m.2"}


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 12}},
        {"alpha_pattern": {"k_proj": 12, ".*layers.0.*": 6, "q_proj": 20}, "use_rslora": True},
        {"rank_pattern": {"self_attn.q_proj": 2}, "r": 64, "lora_alpha": 3},
        {"alpha_pattern": {"proj": 12}},
    ],
    ids=str,
)
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning")
def test_scalings_are_pefts(tmp_path, setting):
    """PEFT's own layer, made by PEFT's own rules for the same config, scales alike."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapter = open_adapter(write_adapter(tmp_path / "lora", **setting))
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList()})})
    model["model"]["layers"].append(torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict()}))
    model["model"]["layers"][0]["self_attn"]["q_proj"] = torch.nn.Linear(8, 8, bias=False)
    known = {
        key: adapter.config[key] for key in adapter.config if not key.startswith(("peft", "base"))
    }
    layer = get_peft_model(model, LoraConfig(**known)).base_model.model["model"]["layers"][0]
    expected = layer["self_attn"]["q_proj"]

    found = scaling_of(adapter, adapter.pairs[0])

    assert (found.rank, found.value) == (expected.r["default"], expected.scaling["default"])


@pytest.mark.parametrize(
    "setting",
    [
        {"lora_alpha": "4"},
        {"r": None},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": [1]},
        {"lora_alpha": float("inf")},
    ],
    ids=str,
)
def test_a_config_without_a_number_where_one_belongs_is_refused(tmp_path, setting):
    adapter = open_adapter(write_adapter(tmp_path / "lora", **setting))

    with pytest.raises(AdapterError, match="gives no number"):
        scaling_of(adapter, adapter.pairs[0])


@pytest.mark.parametrize("beside", [(), ("zero_to_fp32.py",), ("global_step12",)])
def test_an_adapter_that_zero_3_did_not_gather_is_recognized(tmp_path, beside):
    folder = write_adapter(tmp_path / "lora")
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    write_safetensors(
        folder / "adapter_model.safetensors",
        {f"{stem}.lora_A.weight": (0,), f"{stem}.lora_B.weight": (8, 2)},
    )
    for name in beside:
        (folder / name).mkdir()

    with pytest.raises(AdapterError, match=r"1 of 2 tensors .+ are empty.+ZeRO-3") as caught:
        open_adapter(folder)

    script = folder / "zero_to_fp32.py"
    if not script.exists():
        script = "-m deepspeed.utils.zero_to_fp32"
    assert "zero_to_fp32" in caught.value.hint
    assert (f"`python {script} {folder}" in caught.value.hint) == bool(beside)
    assert "stage3_gather_16bit_weights_on_model_save" in caught.value.hint
