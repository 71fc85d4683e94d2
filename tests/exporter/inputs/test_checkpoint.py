from __future__ import annotations

import json

import pytest

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from tests.support.raw import edit_json, write_base, write_safetensors


def shard(folder, weight_map, files):
    """Lay a checkpoint out in shards: {tensor: file} as the index says, {file: tensors} as is."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, tensors in files.items():
        write_safetensors(folder / name, dict.fromkeys(tensors, (2, 2)))


def test_a_folder_opens_without_reading_a_weight(tmp_path):
    checkpoint = open_checkpoint(write_base(tmp_path / "base"))

    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.name == "base"
    assert [tensor.shape for tensor in checkpoint.tensors.values()] == [(8, 8), (8, 8)]


def test_shards_are_read_in_their_names_order(tmp_path):
    folder = write_base(tmp_path / "base")
    shard(folder, {"b": "2", "a": "2", "z": "1"}, {"1": ["z"], "2": ["b", "a"]})

    assert list(open_checkpoint(folder).tensors) == ["z", "a", "b"]


def test_a_missing_shard_is_named(tmp_path):
    folder = write_base(tmp_path / "base")
    shard(folder, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": ["a"]})

    with pytest.raises(CheckpointError, match=r"2\.safetensors` is missing") as caught:
        open_checkpoint(folder)

    assert "fetch that file" in caught.value.hint


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "1", "b": "1"}, "`b` .* in the index but in no file"),
        ({}, "no usable weight_map"),
        ({"a": "../1"}, "no usable weight_map"),
        ({"a": 1}, "no usable weight_map"),
        (["a"], "no usable weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, weight_map, said):
    folder = write_base(tmp_path / "base")
    shard(folder, weight_map, {"1": ["a"]})

    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = write_base(tmp_path / "base")
    shard(folder, {"a": "1", "b": "2"}, {"1": ["a"], "2": ["a", "b"]})

    with pytest.raises(CheckpointError, match="`a` is in `2` and in another file"):
        open_checkpoint(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no base model folder") as caught:
        open_checkpoint(tmp_path / "none")

    assert "--base" in caught.value.hint


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.trained
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_type": "new"}),
        ("config.json", {"architectures": ["NewForCausalLM"]}),
        ("config.json", {"architectures": None}),
        ("tokenizer_config.json", {}),
    ],
)
def test_a_folder_with_code_of_its_own_is_refused(tmp_path, name, changes):
    folder = write_base(tmp_path / "base")
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit_json(folder / name, auto_map={"AutoModel": "model.Evil"}, **changes)

    with pytest.raises(UnsupportedError, match="does not run"):
        open_checkpoint(folder)


@pytest.mark.trained
def test_code_beside_a_model_that_transformers_knows_is_not_needed(tmp_path):
    folder = write_base(tmp_path / "base")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "model.Evil"})
    (folder / "model.py").write_text("raise SystemExit('run')")

    assert open_checkpoint(folder).tensors


@pytest.mark.trained
def test_a_file_that_shrank_since_it_was_opened_is_noticed(tmp_path):
    folder = write_base(tmp_path / "base")
    tensor = open_checkpoint(folder).tensors["model.layers.0.self_attn.v_proj.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(tensor.offset + 10)

    with pytest.raises(CheckpointError, match="ended inside tensor"):
        read_tensor(tensor)
