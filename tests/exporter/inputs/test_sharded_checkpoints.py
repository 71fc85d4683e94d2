"""Distributed trainings: FSDP's shards are read, DeepSpeed's are told how to be put together."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest

from exporter.core.errors import AdapterError, CheckpointError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.distcp import read_distcp
from exporter.inputs.find_model import find_model
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from tests.support.raw import CONFIG, write_adapter, write_base, write_safetensors
from tests.support.sharded import save_fsdp, save_zero

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

FSDP = "pytorch_model_fsdp_0"
STEM = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG_NAME = "adapter_config.json"


def silent(event):
    del event


def values():
    import torch

    torch.manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(17, 8).bfloat16(),
        "model.layers.0.self_attn._fsdp_wrapped_module.q_proj.weight": torch.randn(8, 8).half(),
        "model.norm.weight": torch.randn(8),
        "scale": torch.tensor(2.0),
    }


def pairs(width=8):
    import torch

    torch.manual_seed(1)
    return {
        f"{STEM}.lora_A.weight": torch.randn(2, width),
        f"{STEM}.lora_B.weight": torch.randn(width, 2),
    }


def test_fsdps_shards_hold_what_torch_itself_reads(tmp_path):
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = save_fsdp(tmp_path / "shards", values())
    dcp_to_torch_save(folder, tmp_path / "whole.pt")

    found = read_distcp(folder, error=AdapterError)

    expected = torch.load(tmp_path / "whole.pt", weights_only=True)["model"]
    assert len(found) == len(expected) == 4
    for name, tensor in expected.items():
        ours = found[name.replace("_fsdp_wrapped_module.", "")]
        assert (ours.shape, ours.nbytes) == (tuple(tensor.shape), tensor.nbytes)
        assert torch.equal(ours.read(), tensor)


def test_what_torch_saves_is_read(tmp_path):
    import torch
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": values()}, storage_writer=dcp.FileSystemWriter(tmp_path / "shards"))

    found = read_distcp(tmp_path / "shards", error=AdapterError)

    assert all(torch.equal(found[name.replace("_fsdp_wrapped_module.", "")].read(), tensor)
               for name, tensor in values().items())  # fmt: skip


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_metadata_that_would_run_code_is_refused(tmp_path):
    folder = save_fsdp(tmp_path / "shards", values())
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))

    with pytest.raises(AdapterError, match=r"could run code.*mkdir"):
        read_distcp(folder, error=AdapterError)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["file", "bytes", "metadata", "outside"])
def test_damaged_shards_are_named(tmp_path, damage):
    folder = save_fsdp(tmp_path / "shards", values())
    shard, metadata = folder / "__1_0.distcp", folder / ".metadata"
    match damage:
        case "file":
            shard.unlink()
        case "bytes":
            shard.write_bytes(bytes(len(shard.read_bytes())))
        case "metadata":
            metadata.write_bytes(metadata.read_bytes()[:50])
        case "outside":
            metadata.write_bytes(metadata.read_bytes().replace(b"__1_0.distcp", b"../x0.distcp"))

    with pytest.raises(AdapterError):
        for tensor in read_distcp(folder, error=AdapterError).values():
            tensor.read()


@pytest.mark.parametrize("config_in", ["", "checkpoint-50", f"checkpoint-50/{FSDP}"])
@pytest.mark.parametrize("named", ["", "checkpoint-50", f"checkpoint-50/{FSDP}"])
def test_an_adapter_in_fsdps_shards_is_the_one_that_peft_would_have_saved(
    tmp_path, config_in, named
):
    import torch
    from safetensors.torch import save_file

    run, twin = tmp_path / "run", write_adapter(tmp_path / "twin")
    save_fsdp(run / "checkpoint-50" / FSDP, pairs())
    shutil.copy(twin / CONFIG_NAME, run / config_in)
    save_file(pairs(), twin / "adapter_model.safetensors")
    base = open_checkpoint(write_base(tmp_path / "base"))

    adapters = [open_adapter(run / named), open_adapter(twin)]

    plans = [plan_merge(base, [WeightedAdapter(adapter)]) for adapter in adapters]
    (name,) = plans[0].changes
    assert torch.equal(*(MergedTensors(plan).read(name) for plan in plans))
    assert adapters[0].name == ("run-checkpoint-50" if named else "run")
    assert adapters[0].exact_name == "run-checkpoint-50"
    assert len(adapters[0].sha256()) == 64
    assert open_adapter(adapters[0].place).sha256() == adapters[0].sha256()


def test_shards_of_an_adapter_without_its_config_are_told_what_they_lack(tmp_path):
    save_fsdp(tmp_path / "run" / "checkpoint-50" / FSDP, pairs())

    with pytest.raises(AdapterError, match="rank and scale") as caught:
        open_adapter(tmp_path / "run")

    assert "checkpoint-50" in caught.value.hint


@pytest.mark.parametrize("config_in", ["", "checkpoint-50"])
def test_a_model_in_fsdps_shards_is_opened_with_the_config_above(tmp_path, config_in):
    import torch

    run = tmp_path / "run"
    save_fsdp(run / "checkpoint-50" / FSDP, values())
    (run / config_in / "config.json").write_text(json.dumps(CONFIG))

    for named in (run, run / "checkpoint-50", run / "checkpoint-50" / FSDP):
        opened = open_checkpoint(find_model(named, report=silent))

        embedding = opened.tensors["model.embed_tokens.weight"]
        assert torch.equal(embedding.read(), values()["model.embed_tokens.weight"])
        assert opened.folder == run / config_in


def test_an_older_checkpoint_is_not_answered_with_the_newest(tmp_path):
    import torch

    run = tmp_path / "run"
    for step in (50, 100):
        held = {"model.norm.weight": torch.full((8,), float(step))}
        save_fsdp(run / f"checkpoint-{step}" / FSDP, held)
    (run / "config.json").write_text(json.dumps(CONFIG))

    for named, step in (("checkpoint-50", 50), ("checkpoint-100", 100), ("", 100)):
        opened = open_checkpoint(find_model(run / named, report=silent))
        assert opened.tensors["model.norm.weight"].read()[0] == step


@pytest.mark.parametrize("named", ["", "checkpoint-50", "checkpoint-50/global_step50"])
@pytest.mark.parametrize("script", [True, False])
def test_a_zero_checkpoint_is_told_the_command(tmp_path, named, script):
    checkpoint = save_zero(tmp_path / "run" / "checkpoint-50", script=script)

    with pytest.raises(AdapterError, match="DeepSpeed ZeRO") as caught:
        open_adapter(tmp_path / "run" / named)

    command = f"{checkpoint}/zero_to_fp32.py" if script else "-m deepspeed.utils.zero_to_fp32"
    assert f"python {command} {checkpoint} {checkpoint}-whole" in caught.value.hint
    assert "--exclude_frozen_parameters" in caught.value.hint


def test_tensors_that_zero_left_empty_are_told_the_command(tmp_path):
    """A file of some 40 bytes, or of names without values, beside the shards."""
    folder = write_adapter(tmp_path / "checkpoint-50")
    save_zero(folder)
    write_safetensors(folder / "adapter_model.safetensors", {f"{STEM}.lora_A.weight": (0,)})

    with pytest.raises(AdapterError, match="ZeRO-3 saved them without gathering") as caught:
        open_adapter(folder)

    assert "zero_to_fp32.py" in caught.value.hint
    write_safetensors(folder / "adapter_model.safetensors", {})
    with pytest.raises(AdapterError, match="holds no tensors") as caught:
        open_adapter(folder)
    assert "zero_to_fp32.py" in caught.value.hint


def test_what_zero_to_fp32_writes_is_taken_with_the_config_beside_it(tmp_path):
    from safetensors.torch import save_file

    folder = write_adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    raw = {name.replace(".weight", ".default.weight"): value for name, value in pairs().items()}
    save_file(raw, folder / "model.safetensors")

    adapter = open_adapter(folder)

    (pair,) = adapter.pairs
    assert (pair.module, pair.a.shape) == ("model.layers.0.self_attn.q_proj", (2, 8))
    assert [tensor.name for tensor in pair.tensors.values()] == list(pairs())


def test_a_whole_state_dict_with_pefts_layers_merges_as_what_peft_saves(tmp_path, tiny_base):
    """torch.save(model.state_dict()), with a head that was trained beside the LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="auto")
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(model, config)
    for name, values in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            values.data.normal_(std=0.05)
    model.save_pretrained(tmp_path / "peft")
    raw = shutil.copytree(tmp_path / "peft", tmp_path / "raw")
    (raw / "adapter_model.safetensors").unlink()
    torch.save(model.state_dict(), raw / "adapter_model.bin")
    base = open_checkpoint(tiny_base)

    plans = [
        plan_merge(base, [WeightedAdapter(open_adapter(tmp_path / name))])
        for name in ("raw", "peft")
    ]

    tensors = [MergedTensors(plan) for plan in plans]
    assert plans[0].changes.keys() >= plans[1].changes.keys()
    for name in plans[0].changes:
        assert torch.equal(*(one.read(name).float() for one in tensors)), name


def test_a_state_dict_of_two_adapters_is_refused_with_their_names(tmp_path):
    from safetensors.torch import save_file

    folder = write_adapter(tmp_path / "lora")
    both = {
        name.replace(".weight", f".{one}.weight"): value.clone()
        for name, value in pairs().items()
        for one in ("train", "reference")
    }
    save_file(both, folder / "adapter_model.safetensors")

    with pytest.raises(AdapterError, match="2 adapters: reference, train"):
        open_adapter(folder)


def test_a_base_in_zeros_shards_is_told_the_command(tmp_path):
    checkpoint = save_zero(tmp_path / "run")
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))

    with pytest.raises(CheckpointError, match="DeepSpeed ZeRO") as caught:
        open_checkpoint(checkpoint)

    assert "--safe_serialization &&" in caught.value.hint


def test_one_processs_part_of_fsdp_is_explained(tmp_path):
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model_fsdp_0_rank0.bin")

    with pytest.raises(CheckpointError, match="one process") as caught:
        open_checkpoint(folder)

    assert "FULL_STATE_DICT" in caught.value.hint
