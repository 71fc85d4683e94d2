"""Bases with experts in MXFP4, against transformers' own dequantizing."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import CheckpointError
from exporter.core.events import Note
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized.plain_base import dequantized

NAME = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS, N_OUT, N_IN = 3, 6, 64

pytestmark = pytest.mark.trained


@pytest.fixture
def packed():
    """Random bytes: every step and many exponents."""
    import torch

    torch.manual_seed(5)
    blocks = torch.randint(0, 256, (EXPERTS, N_OUT, N_IN // 32, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (EXPERTS, N_OUT, N_IN // 32), dtype=torch.uint8)
    return {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}


def base_of(folder, tensors):
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    config = {"architectures": ["GptOssForCausalLM"], "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def test_experts_are_what_transformers_makes_of_them(tmp_path, packed):
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    bias = torch.ones(EXPERTS, N_OUT)
    said: list[object] = []

    plain = base_of(tmp_path / "base", packed | {f"{NAME}_bias": bias})
    dequantized(plain, None, report=said.append)

    expected = convert_moe_packed_tensors(packed[f"{NAME}_blocks"], packed[f"{NAME}_scales"])
    assert plain.tensors.keys() == {NAME, f"{NAME}_bias"}
    assert plain.tensors[NAME].shape == tuple(expected.shape) == (EXPERTS, N_IN, N_OUT)
    assert torch.equal(read_tensor(plain.tensors[NAME]), expected)
    assert plain.tensors[NAME].nbytes == expected.numel() * 2
    assert "quantization_config" not in plain.config
    assert isinstance(said[0], Note)


def test_blocks_without_their_scales_are_named(tmp_path, packed):
    del packed[f"{NAME}_scales"]

    with pytest.raises(CheckpointError, match=r"no fitting `.*gate_up_proj_scales` \(missing\)"):
        base_of(tmp_path / "base", packed)


def test_of_another_base_nothing_is_said(tiny_base):
    said: list[object] = []
    checkpoint = open_checkpoint(tiny_base)

    assert dequantized(checkpoint, None, report=said.append) is checkpoint
    assert said == []
