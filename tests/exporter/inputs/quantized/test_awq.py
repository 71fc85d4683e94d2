"""Bases that AutoAWQ saved: packed here word by word, as its own packing does."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.verify.unmerged import load_base
from tests.support.raw import copy, edit_json

MODULE = "model.layers.0.self_attn.q_proj"
N_IN, N_OUT, GROUP = 64, 24, 16
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AutoAWQ's WQLinear_GEMM.from_linear

pytestmark = pytest.mark.trained


def packed(numbers):
    """(rows, columns) of 4-bit numbers in 32-bit words, (rows, columns / 8)."""
    import torch

    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for column in range(words.shape[1]):
        for place, offset in enumerate(ORDER):
            words[:, column] |= numbers[:, column * 8 + offset].long() << (4 * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.fixture
def weight():
    """Codes, zeros and scales of one matrix, and the matrix that they stand for."""
    import torch

    torch.manual_seed(4)
    codes = torch.randint(0, 16, (N_IN, N_OUT))
    zeros = torch.randint(0, 16, (N_IN // GROUP, N_OUT))
    scales = torch.rand(N_IN // GROUP, N_OUT).half()
    spread = [part.repeat_interleave(GROUP, 0) for part in (zeros, scales)]
    expected = ((codes - spread[0]) * spread[1].float()).T
    parts = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}
    return {f"{MODULE}.{name}": part for name, part in parts.items()}, expected


def base_of(folder, tensors, **settings):
    from safetensors.torch import save_file

    folder.mkdir()
    said = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"} | settings
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def test_a_weight_is_its_codes_less_the_zeros_times_the_scales(tmp_path, weight):
    import torch

    tensors, expected = weight
    bias = {f"{MODULE}.bias": torch.ones(N_OUT)}

    plain = base_of(tmp_path / "base", tensors | bias)

    found = plain.tensors[f"{MODULE}.weight"]
    assert plain.tensors.keys() == {f"{MODULE}.weight", f"{MODULE}.bias"}
    assert found.shape == tuple(expected.shape) == (N_OUT, N_IN)
    assert torch.equal(read_tensor(found), expected)
    assert plain.quantized_as == "AWQ"
    assert "quantization_config" not in plain.config


@pytest.mark.parametrize("lost", ["qzeros", "scales"])
def test_a_part_that_is_missing_is_named(tmp_path, weight, lost):
    tensors, _ = weight
    del tensors[f"{MODULE}.{lost}"]

    with pytest.raises(CheckpointError, match=f"no complete AWQ weight.*{lost} missing"):
        base_of(tmp_path / "base", tensors)


@pytest.mark.parametrize("settings", [{"version": "gemv"}, {"bits": 8}, {"quant_method": "hqq"}])
def test_another_form_stays_as_it_is(tmp_path, weight, settings):
    checkpoint = base_of(tmp_path / "base", weight[0], **settings)

    assert checkpoint.quantized_as == ""
    assert checkpoint.tensors.keys() == weight[0].keys()


def test_logits_are_not_judged_where_transformers_cannot_load_the_base(tiny_base, tmp_path):
    folder = copy(tiny_base, tmp_path / "base")
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    edit_json(folder / "config.json", quantization_config=settings)
    plan = plan_merge(open_checkpoint(folder))

    with pytest.raises(UnsupportedError, match="transformers cannot load"):
        load_base(plan.checkpoint, plan, {})
