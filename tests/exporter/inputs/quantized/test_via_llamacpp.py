"""Bases that are published quantized: as llama.cpp's converter has them, and merged into."""

from __future__ import annotations

import pytest

from exporter.cli.app import run
from exporter.core.errors import CheckpointError, UnsupportedError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.quantized.via_llamacpp import dequantized_by_llamacpp, plain_release
from exporter.llamacpp.converter_import import imported
from tests.support.quantized import (
    FLOAT_QUANTIZED,
    FP8,
    GPTQ,
    PACK_QUANTIZED,
    fp8_blocks,
    fp8_channels,
    gptq,
    packed_groups,
    requantized,
)
from tests.support.raw import edit_json, write_base
from tests.support.reference import convert_with_llamacpp, quantize_with_llamacpp, read_gguf

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

FORMS = {
    "fp8": (FP8, fp8_blocks),
    "float-quantized": (FLOAT_QUANTIZED, fp8_channels),
    "pack-quantized": (PACK_QUANTIZED, packed_groups),
    "gptq": (GPTQ, gptq),
}


@pytest.fixture(params=FORMS)
def base(request, tiny_base, tmp_path):
    return requantized(tiny_base, tmp_path / "base", *FORMS[request.param])


@pytest.fixture(autouse=True)
def gguf_importable(toolchain):
    with imported(toolchain):
        yield


def test_without_an_adapter_every_tensor_is_the_converters_own(toolchain, base, tmp_path):
    auto = convert_with_llamacpp(toolchain, base, tmp_path / "auto.gguf")
    expected = {"F16": convert_with_llamacpp(toolchain, base, tmp_path / "f.gguf", outtype="f16")}
    for quant in ("Q8_0", "Q4_K_M"):
        expected[quant] = quantize_with_llamacpp(toolchain, auto, tmp_path / f"{quant}.gguf", quant)
    actual = {quant: tmp_path / f"ours-{quant}.gguf" for quant in expected}
    request = ExportRequest((), base, tuple(actual), tuple(actual.values()), merge_dtype="base")

    export(request, toolchain)

    for quant, path in expected.items():
        assert read_gguf(actual[quant])[1] == read_gguf(path)[1], quant


def test_an_adapter_is_merged_into_the_dequantized_weights(toolchain, base, tiny_adapter, tmp_path):
    """The oracle: the same numbers from llama.cpp's F32 file, in plain safetensors."""
    import numpy as np
    from safetensors.torch import load_file

    with_adapter, whole = tmp_path / "with.gguf", tmp_path / "f32.gguf"
    export(ExportRequest(((tiny_adapter, 1.0),), base, ("F32",), (with_adapter,)), toolchain)
    convert_with_llamacpp(toolchain, base, whole, outtype="f32")
    merged, plain = read_gguf(with_adapter)[1], read_gguf(whole)[1]

    assert list(merged) == list(plain)
    halves = load_file(tiny_adapter / "adapter_model.safetensors")
    for ours, theirs in (("up_proj", "ffn_up"), ("down_proj", "ffn_down")):
        stem = f"base_model.model.model.layers.1.mlp.{ours}"
        a, b = (halves[f"{stem}.lora_{half}.weight"].double().numpy() for half in "AB")
        before, after = (
            np.frombuffer(tensors[f"blk.1.{theirs}.weight"][2], np.float32).reshape(len(b), -1)
            for tensors in (plain, merged)
        )
        # sums of eight products and one more of about 1, in float32
        np.testing.assert_allclose(after, before + 16 / 8 * b @ a, atol=2**-20)


def test_a_merged_checkpoint_is_made_of_it_too(base, tiny_adapter, tmp_path):
    from safetensors.torch import load_file

    arguments = ["--base", str(base), "--to", "safetensors", "-o", str(tmp_path / "merged")]

    assert run(["export", str(tiny_adapter), *arguments, "--quiet"]) == 0

    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert tensors["model.layers.1.mlp.up_proj.weight"].is_floating_point()
    assert not any("scale" in name for name in tensors)


def test_a_kind_that_is_not_known_is_refused_by_name(toolchain, tiny_base, tmp_path):
    folder = requantized(tiny_base, tmp_path / "x", {"quant_method": "hqq"}, gptq)

    with pytest.raises(UnsupportedError, match="hqq") as caught:
        dequantized_by_llamacpp(open_checkpoint(folder), toolchain)

    assert "16-bit release" in caught.value.hint


def test_a_part_that_is_missing_is_told(toolchain, tiny_base, tmp_path):
    def incomplete(name, weight):
        return {key: part for key, part in gptq(name, weight).items() if "scales" not in key}

    folder = requantized(tiny_base, tmp_path / "x", GPTQ, incomplete)

    with pytest.raises(CheckpointError, match=r"do not fit each other.*\.scales"):
        dequantized_by_llamacpp(open_checkpoint(folder), toolchain)


@pytest.mark.parametrize("settings", ["fp8", ["fp8"], {"quant_method": "fp8"}])
def test_settings_without_quantized_weights_are_told(toolchain, tiny_base, tmp_path, settings):
    folder = requantized(tiny_base, tmp_path / "x", {}, lambda name, weight: {name: weight})
    edit_json(folder / "config.json", quantization_config=settings)

    with pytest.raises(UnsupportedError, match="none of its weights"):
        dequantized_by_llamacpp(open_checkpoint(folder), toolchain)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Qwen2.5-7B-Instruct-AWQ", "`--base ORG/Qwen2.5-7B-Instruct`"),
        ("Qwen2-7B-Instruct-GPTQ-Int4", "`--base ORG/Qwen2-7B-Instruct`"),
        ("models--unsloth--Llama-3.2-1B-unsloth-bnb-4bit", "`--base unsloth/Llama-3.2-1B`"),
        ("Llama-3.2-1B", "use the 16-bit release of this base"),
    ],
)
def test_the_16_bit_release_is_called_by_its_name(tmp_path, name, plain):
    folder = tmp_path / name
    if name.startswith("models--"):
        folder = folder / "snapshots" / ("a" * 40)

    assert plain in plain_release(open_checkpoint(write_base(folder)))
