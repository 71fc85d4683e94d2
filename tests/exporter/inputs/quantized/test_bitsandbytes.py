"""What bitsandbytes quantized, against what bitsandbytes itself makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.core.safetensors import read_header
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.lazy_tensor import read_tensor
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized.bitsandbytes import dequantized, is_quantized
from exporter.inputs.quantized.nf4_fake_quant import nf4_fake_quantize
from exporter.llamacpp.converter_import import imported
from tests.support.quantized import BNB, GOOD, int8, nf4, plain_copy, raw_quantized, requantized
from tests.support.reference import read_gguf

GOLDEN = Path(__file__).parents[3] / "golden" / "bnb.safetensors"
NO_WEIGHTS = ("expected", "roundtrip")
CONFIG = {"dtype": "bfloat16"}


def golden():
    return read_header(GOLDEN, error=CheckpointError)


def quantized():
    return {name: t for name, t in golden().items() if not name.startswith(NO_WEIGHTS)}


def same(actual, expected):
    """Equal to the last bit, the signs of zeros among them."""
    import torch

    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    return torch.equal(*(t.contiguous().view(torch.uint8) for t in (actual, expected)))


@pytest.mark.trained
def test_every_kind_is_dequantized_as_bitsandbytes_does():
    plain = dequantized(quantized(), CONFIG)

    assert len(plain) == 17
    for name, tensor in plain.items():
        expected = read_tensor(golden()[f"expected.{name.removesuffix('.weight')}"])
        assert same(read_tensor(tensor), expected), name
        assert tensor.shape == tuple(expected.shape)
        assert tensor.nbytes == expected.nbytes


@pytest.mark.trained
@pytest.mark.parametrize("chunk", [4096, 1 << 20])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_the_roundtrip_is_bitsandbytes_own(monkeypatch, dtype, double_quant, chunk):
    import torch

    monkeypatch.setattr("exporter.inputs.quantized.nf4_fake_quant.CHUNK", chunk)
    weight = read_tensor(golden()[f"roundtrip.{dtype}"])
    before = weight.clone()

    actual = nf4_fake_quantize(weight, double_quant=double_quant)

    expected = read_tensor(golden()[f"expected.roundtrip-{int(double_quant)}.{dtype}"])
    if double_quant and dtype == "f32":  # torch sums the scales' mean in the processor's order
        torch.testing.assert_close(actual, expected, rtol=2**-22, atol=0)
    else:
        assert same(actual, expected)
    assert same(weight, before)


def test_headers_alone_say_what_there_will_be():
    plain = dequantized(quantized(), CONFIG)

    assert plain["nf4-64-1-bf16.weight"].shape == (5, 50)
    assert [plain[f"nf4-64-0-{dtype}.weight"].dtype for dtype in ("f32", "f16", "bf16")] == [
        "F32", "F16", "BF16",
    ]  # fmt: skip
    assert plain["int8.weight"].dtype == "BF16"


def test_a_layer_that_is_kept_the_other_way_round_is_turned_back():
    plain = dequantized(quantized(), CONFIG | {"model_type": "gpt2"})

    assert plain["nf4-64-0-bf16.weight"].shape == (50, 5)
    assert plain["int8.weight"].shape == (40, 6)


@pytest.mark.parametrize(
    "missing", ["absmax", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"]
)
def test_a_missing_part_is_named(missing):
    tensors = quantized()
    del tensors[f"nf4-64-1-bf16.weight.{missing}"]

    with pytest.raises(CheckpointError, match=r"`nf4-64-1-bf16\.weight`"):
        dequantized(tensors, CONFIG)


@pytest.mark.parametrize("part", ["absmax", "nested_absmax", "nested_quant_map", None])
def test_a_part_of_another_weight_is_refused(part):
    tensors = quantized()
    name = "nf4-64-1-bf16.weight"
    key, other = (f"{name}.{part}", f"many.weight.{part}") if part else (name, "many.weight")
    tensors[key] = tensors[other] if part != "nested_quant_map" else tensors[f"{name}.absmax"]

    with pytest.raises(CheckpointError, match=r"`nf4-64-1-bf16\.weight`"):
        dequantized(tensors, CONFIG)


@pytest.mark.parametrize(
    "state",
    [
        b"", b"[]", b"{", b"\xff", json.dumps({}).encode(),
        *(
            json.dumps(GOOD | wrong).encode()
            for wrong in (
                {"quant_type": "fp4"}, {"blocksize": 0}, {"blocksize": 64.0}, {"blocksize": "64"},
                {"dtype": "int8"}, {"dtype": None}, {"shape": None}, {"shape": [-8, -8]},
                {"shape": [8, "8"]}, {"shape": [2**40, 2**40]}, {"shape": []},
                {"nested_blocksize": 0}, {"nested_blocksize": 256, "nested_offset": 10**400},
                {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": "x"},
            )
        ),
    ],
)  # fmt: skip
def test_a_state_that_makes_no_sense_is_refused(tmp_path, state):
    folder = raw_quantized(tmp_path / "base", state)

    with pytest.raises(CheckpointError, match=r"x\.weight"):
        open_checkpoint(folder)


def test_a_whole_state_opens_and_the_config_forgets_it(tmp_path):
    found = open_checkpoint(raw_quantized(tmp_path / "base", json.dumps(GOOD).encode()))

    assert list(found.tensors) == ["x.weight"]
    assert found.tensors["x.weight"].shape == (8, 8)
    assert not is_quantized(found.config)


def test_an_old_gpus_order_of_columns_is_refused(tmp_path):
    tensors = quantized()
    tensors["int8.weight_format"] = tensors["int8.SCB"]  # anything but zeros

    with pytest.raises(UnsupportedError, match="old GPU"):
        dequantized(tensors, CONFIG)


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize("quantize", [nf4, int8])
@pytest.mark.parametrize("merge_dtype", ["float32", "base"])
def test_such_a_base_exports_as_its_dequantized_copy_does(
    toolchain, tiny_base, tiny_adapter, tmp_path, quantize, merge_dtype
):
    base = requantized(tiny_base, tmp_path / "bnb", BNB, quantize)
    plain = plain_copy(base, tmp_path / "plain")
    for adapters in ((), ((tiny_adapter, 1.0),)):
        made = {}
        for folder in (base, plain):
            quants = ("F16", "Q4_K_M")
            made[folder] = [tmp_path / f"{folder.name}-{len(adapters)}-{q}.gguf" for q in quants]
            request = ExportRequest(
                adapters, folder, quants, tuple(made[folder]), merge_dtype=merge_dtype
            )
            export(request, toolchain)
        with imported(toolchain):
            for ours, expected in zip(made[base], made[plain], strict=True):
                assert read_gguf(ours)[1] == read_gguf(expected)[1]
