"""Folders as trainers, browsers and git really leave them."""

from __future__ import annotations

import json
import shutil

import pytest

from exporter.core.errors import AdapterError, CheckpointError
from exporter.core.events import Note
from exporter.core.safetensors import read_header
from exporter.inputs.adapter import open_adapter
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.locate import Sources, bring, named_base
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.peft_folder import peft_folder
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.odd_adapters import PREFIX, SHAPES, STEM, A, B, adapter_of, changed
from tests.support.raw import write_adapter, write_base, write_safetensors


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"pretrained_model.{name}",
        lambda name: name.replace(PREFIX, f"{PREFIX}module."),
        lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
        lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
        lambda name: name.removeprefix(PREFIX),
    ],
)
def test_what_wrappers_leave_in_an_adapters_names_is_taken_off(tmp_path, wrap):
    adapter = open_adapter(adapter_of(tmp_path / "lora", [wrap(A), wrap(B)]))

    assert [pair.module for pair in adapter.pairs] == [STEM]


@pytest.mark.trained
@pytest.mark.parametrize("name", ["module.{}", "{}"])
def test_peft_is_given_a_folder_that_it_reads(tmp_path, name):
    folder = adapter_of(tmp_path / "lora", [name.format(A), name.format(B)])

    with peft_folder(open_adapter(folder)) as given:
        assert (given == folder) == (name == "{}")
        header = read_header(given / "adapter_model.safetensors", error=AdapterError)
        assert {key: tensor.shape for key, tensor in header.items()} == SHAPES


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "pretrained_model.", PREFIX])
def test_what_wrappers_leave_in_a_bases_names_is_taken_off(tmp_path, prefix):
    base = write_base(tmp_path / "base")
    names = list(open_checkpoint(base).tensors)
    write_safetensors(base / "model.safetensors", dict.fromkeys(map(prefix.__add__, names), (8, 8)))

    checkpoint = open_checkpoint(base)

    assert list(checkpoint.tensors) == names
    assert [tensor.name for tensor in checkpoint.tensors.values()] == names


def test_a_prefix_of_some_tensors_only_stays(tmp_path):
    base = write_base(tmp_path / "base")
    shapes = {"module.a.weight": (8, 8), "other.weight": (8, 8)}
    write_safetensors(base / "model.safetensors", shapes)

    assert list(open_checkpoint(base).tensors) == list(shapes)


@pytest.mark.trained
def test_a_pickle_of_the_old_kind_is_read_under_the_new_name(tmp_path):
    import torch

    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    values = {f"module.{A}": torch.randn(2, 8), f"module.{B}": torch.randn(8, 2)}
    path = folder / "adapter_model.bin"
    torch.save(values, path, _use_new_zipfile_serialization=False)

    pair = open_adapter(folder).pairs[0]

    assert pair.module == STEM
    assert torch.equal(read_tensor(pair.a), values[f"module.{A}"])


def test_shards_of_an_adapter_are_one_adapter(tmp_path):
    folder = adapter_of(tmp_path / "lora", [A, B])
    whole = open_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    for number, name in enumerate(SHAPES, 1):
        shard = folder / f"adapter_model-0000{number}-of-00002.safetensors"
        write_safetensors(shard, {name: SHAPES[name]})

    adapter = open_adapter(folder)

    assert [pair.module for pair in adapter.pairs] == [pair.module for pair in whole.pairs]
    assert (adapter.name, adapter.place) == ("lora", folder)
    before = adapter.sha256()
    write_safetensors(shard, {name: (8, 2), "more": (1,)})
    assert adapter.sha256() != before
    shard.unlink()
    with pytest.raises(
        AdapterError, match=r"adapter_model-00002-of-00002\.safetensors` is missing"
    ):
        open_adapter(folder)


def test_shards_of_a_base_need_no_index(tmp_path):
    base = write_base(tmp_path / "base")
    tensors = open_checkpoint(base).tensors
    (base / "model.safetensors").unlink()
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        shard = base / f"model-0000{number}-of-00002.safetensors"
        write_safetensors(shard, {name: tensor.shape})

    assert set(open_checkpoint(base).tensors) == set(tensors)

    shard.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors` is missing"):
        open_checkpoint(base)


@pytest.mark.parametrize("kind", ["lora", "Lora", None])
def test_a_kind_that_others_write_otherwise_is_lora(tmp_path, kind):
    folder = changed(write_adapter(tmp_path / "lora"), peft_type=kind)

    assert open_adapter(folder).kind == "LORA"


def test_a_value_head_is_left_out_and_said(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    head = {"v_head.summary.weight": (1, 8), "v_head.summary.bias": (1,)}
    write_safetensors(folder / "adapter_model.safetensors", SHAPES | head)
    base = write_base(tmp_path / "base")
    shapes = {name: tensor.shape for name, tensor in open_checkpoint(base).tensors.items()}
    write_safetensors(base / "model.safetensors", shapes | head)
    said: list[object] = []

    adapter = open_adapter(folder, report=said.append)
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(adapter, 1.0)])

    assert [event.message for event in said if isinstance(event, Note)] == [
        "`v_head.summary.bias` is left out: a value head judges texts, and writes none"
    ]
    assert set(plan.names) == set(shapes)
    assert "value head" in plan.notes[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_model (1).safetensors", None),
        ("pytorch_lora_weights.safetensors", None),
        ("adapter_model.safetensors.crdownload", "was not finished"),
        ("adapter_model.pt", "is safetensors under another name"),
    ],
)
def test_weights_under_a_strange_name_are_found_or_named(tmp_path, name, said):
    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").rename(folder / name)

    if said is None:
        assert open_adapter(folder).pairs
        return
    with pytest.raises(AdapterError) as caught:
        open_adapter(folder)
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config (1).json": None}, "second copy"),
        ({"my.safetensors": ("lora_unet_x.lora_down.weight",)}, "makes pictures"),
        ({"my.safetensors": ("unet.a.to_q.lora_A.weight",)}, "makes pictures"),
        ({"my.safetensors": (A, B)}, "beside `my.safetensors`"),
        ({"lit_model.pth.lora": None}, "litgpt merge_lora"),
        ({"a/b/c/adapter_config.json": None}, "a/b/c`"),
    ],
)
def test_a_folder_without_a_config_is_told_what_it_holds(tmp_path, files, said):
    folder = tmp_path / "it"
    for name, tensors in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if tensors:
            write_safetensors(path, dict.fromkeys(tensors, (2, 2)))

    with pytest.raises(AdapterError, match=r"adapter_config\.json` is missing") as caught:
        open_adapter(folder)

    assert said in str(caught.value.hint)


def test_a_merged_model_with_its_adapters_config_is_a_model(tmp_path):
    merged, base = write_base(tmp_path / "merged"), write_base(tmp_path / "base")
    shutil.copy(write_adapter(tmp_path / "lora") / "adapter_config.json", merged)
    said: list[object] = []

    assert bring(Sources((str(merged),), None), report=said.append) == ([], merged)
    assert any("left from training" in event.message for event in said if isinstance(event, Note))
    with pytest.raises(AdapterError, match="is a whole model, no adapter") as caught:
        bring(Sources((str(merged),), str(base)))
    assert f"`decant export {merged}`" in str(caught.value.hint)
    assert f"`decant extract {merged} --base {base}`" in str(caught.value.hint)


def test_an_adapter_beside_a_merged_model_stays_an_adapter(tmp_path):
    both = write_base(tmp_path / "both")
    shutil.copytree(write_adapter(tmp_path / "lora"), both, dirs_exist_ok=True)

    assert bring(Sources((str(both),), None)) == ([both], None)


def test_an_adapter_as_the_base_is_told_how_to_merge_both(tmp_path):
    first, second = write_adapter(tmp_path / "first"), write_adapter(tmp_path / "second")
    base = write_base(tmp_path / "base")
    both = f"`decant export {first} --adapter {second}`"

    with pytest.raises(CheckpointError, match="is an adapter, no base model") as caught:
        bring(Sources((str(second),), str(first)))
    assert both in str(caught.value.hint)
    with pytest.raises(AdapterError, match="which is an adapter itself") as named:
        named_base(open_adapter(changed(second, base_model_name_or_path=str(first))))
    assert both in str(named.value.hint)
    with pytest.raises(AdapterError) as swapped:
        bring(Sources((str(base),), str(first)))
    assert f"`decant export {first} --base {base}`" in str(swapped.value.hint)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("params.json", "consolidated.00.pth"), "publisher's own form"),
        (("params.json", "consolidated.safetensors"), "publisher's own form"),
        (("model_index.json",), "makes pictures"),
        (("adapter_config.json",), "is an adapter"),
    ],
)
def test_a_base_in_another_form_is_called_that(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("{}")

    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_a_model_saved_with_pefts_layers_in_it_is_no_base(tmp_path):
    base = write_base(tmp_path / "base")
    names = [f"{PREFIX}{STEM}.{role}.weight" for role in ("base_layer", "lora_A.default")]
    write_safetensors(base / "model.safetensors", dict.fromkeys(names, (8, 8)))

    with pytest.raises(CheckpointError, match="an adapter in it that is not merged") as caught:
        open_checkpoint(base)

    assert f"`decant export {base} --base BASE`" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.0.mixer.Wqkv.parametrizations.weight.0.lora_A",
        "model.layers.0.self_attn.qkv_proj.base_layer.weight",
        "model.layers.0.self_attn.qkv_proj.lora_A.speech.weight",
        "model.layers.0.mlp.lora_A_slices.0",
    ],
)
def test_adapters_that_belong_to_a_published_model_stay_in_it(tmp_path, name):
    base = write_base(tmp_path / "base")
    write_safetensors(base / "model.safetensors", {name: (8, 8)})

    assert list(open_checkpoint(base).tensors) == [name]


def test_the_newest_step_of_mlx_stands_for_weights_that_were_not_saved(tmp_path):
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"adapters\.safetensors` is missing"):
        open_adapter(tmp_path)
    for step, width in (("0000100", 4), ("0000200", 8)):
        shapes = {f"{STEM}.lora_a": (width, 2), f"{STEM}.lora_b": (2, width)}
        write_safetensors(tmp_path / f"{step}_adapters.safetensors", shapes)
    said: list[object] = []

    adapter = open_adapter(tmp_path, report=said.append)

    assert adapter.pairs[0].a.shape == (2, 8)
    assert "`0000200_adapters.safetensors`" in said[0].message


@pytest.mark.parametrize("wrapper", [".modules_to_save", ".modules_to_save.default"])
def test_whole_modules_that_kept_pefts_wrapper_in_their_names_are_read(tmp_path, wrapper):
    folder = write_adapter(tmp_path / "lora", modules_to_save=["lm_head"])
    head = f"{PREFIX}lm_head{wrapper}.weight"
    write_safetensors(folder / "adapter_model.safetensors", SHAPES | {head: (16, 8)})

    adapter = open_adapter(folder)

    assert list(adapter.values) == ["lm_head.weight"]
    assert not adapter.read_by_peft
