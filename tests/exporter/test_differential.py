"""The one pass against the usual road, run for real."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from exporter.core.ggml_types import FLOATS, FTYPES
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain
from tests.support.reference import (
    MAY_DIFFER,
    convert_with_llamacpp,
    export_the_usual_way,
    merge_with_peft,
    quantize_with_llamacpp,
    read_gguf,
)
from tests.support.tiny import make_adapter, make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

QUANTS = ("Q4_K_M", "Q8_0", "F16", "BF16")
NEED_MATRIX = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S",
)  # fmt: skip
OURS = "decant."


@dataclass(frozen=True)
class Roads:
    """The same export by several roads, by quantization."""

    base: Path
    adapter: Path
    usual: dict[str, Path]
    rounded: dict[str, Path]


@pytest.fixture(
    scope="session",
    params=[("bfloat16", QUANTS), ("float16", ("Q4_K_M",)), ("float32", ("Q4_K_M",))],
    ids=["bfloat16", "float16", "float32"],
)
def roads(request, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Roads:
    dtype, quants = request.param
    folder = tmp_path_factory.mktemp(dtype)
    # 2560 rows of 256: more than one run of rows, so that their places in the file matter
    base = make_base(folder / "base", dtype=dtype, intermediate_size=2560)
    adapter = make_adapter(folder / "lora", base, use_rslora=True, rank_pattern={"q_proj": 4})
    usual = {
        quant: export_the_usual_way(toolchain, base, adapter, quant, folder) for quant in quants
    }
    rounded = {quant: folder / f"rounded-{quant}.gguf" for quant in quants}
    export(
        ExportRequest(((adapter, 1.0),), base, quants, tuple(rounded.values()), merge_dtype="base"),
        toolchain,
    )
    return Roads(base, adapter, usual, rounded)


@pytest.fixture(autouse=True)
def gguf_importable(toolchain: Toolchain):
    with imported(toolchain):
        yield


def test_merge_dtype_base_gives_the_usual_roads_tensors_byte_for_byte(roads):
    for quant, path in roads.usual.items():
        _, expected = read_gguf(path)
        _, actual = read_gguf(roads.rounded[quant])

        assert list(actual) == list(expected), quant
        assert [name for name in expected if actual[name] != expected[name]] == [], quant


@pytest.mark.slow
def test_every_quantization_on_offer_is_llama_quantizes_own(
    toolchain, tiny_base, tiny_adapter, tmp_path
):
    """All of them from one read of the base, types and bytes alike."""
    quants = tuple(quant for quant in FTYPES if quant not in (*FLOATS, *NEED_MATRIX))
    ours = {quant: tmp_path / f"ours-{quant}.gguf" for quant in quants}
    export(
        ExportRequest(
            ((tiny_adapter, 1.0),),
            tiny_base,
            quants,
            tuple(ours.values()),
            merge_dtype="base",
            threads=2,
        ),
        toolchain,
    )
    whole = convert_with_llamacpp(
        toolchain,
        merge_with_peft(tiny_base, tiny_adapter, tmp_path / "merged"),
        tmp_path / "w.gguf",
    )

    differing = {}
    for quant, path in ours.items():
        usual = quantize_with_llamacpp(toolchain, whole, tmp_path / "usual.gguf", quant)
        expected, actual = read_gguf(usual)[1], read_gguf(path)[1]
        if wrong := [name for name in expected if actual.get(name) != expected[name]]:
            differing[quant] = wrong
    assert differing == {}


def test_every_metadata_key_equals_the_usual_roads_but_for_names_and_provenance(roads):
    for quant, path in roads.usual.items():
        expected, _ = read_gguf(path)
        actual, _ = read_gguf(roads.rounded[quant])

        differing = {
            key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key)
        }
        assert {key for key in differing if not key.startswith(OURS)} <= set(MAY_DIFFER), quant


def test_float32_merges_are_the_exact_sum_to_a_float32_rounding(toolchain, roads, tmp_path):
    from safetensors.torch import load_file

    output = tmp_path / "exact.gguf"
    export(ExportRequest(((roads.adapter, 1.0),), roads.base, ("F32",), (output,)), toolchain)

    name = "model.layers.1.mlp.down_proj"
    stored = load_file(roads.base / "model.safetensors")[f"{name}.weight"].double()
    halves = load_file(roads.adapter / "adapter_model.safetensors")
    a, b = (halves[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
    expected = (stored + 16 / math.sqrt(8) * (b @ a)).numpy()  # rsLoRA: alpha / sqrt(rank)
    actual = np.frombuffer(read_gguf(output)[1]["blk.1.ffn_down.weight"][2], np.float32)

    # values of up to about 1; a sum of 8 products and one more, in float32
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, atol=2**-20)


def test_no_intermediate_model_is_left_or_made(
    toolchain, tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    output = tmp_path / "out" / "model.gguf"

    export(ExportRequest(((tiny_adapter, 1.0),), tiny_base, ("Q4_K_M",), (output,)), toolchain)

    assert [path.name for path in output.parent.iterdir()] == ["model.gguf"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_scale_zero_is_the_base(toolchain, tiny_base, tiny_adapter, tmp_path):
    outputs = tmp_path / "zero.gguf", tmp_path / "base.gguf"
    export(ExportRequest(((tiny_adapter, 0.0),), tiny_base, ("F16",), outputs[:1]), toolchain)
    export(ExportRequest((), tiny_base, ("F16",), outputs[1:]), toolchain)

    assert read_gguf(outputs[0])[1] == read_gguf(outputs[1])[1]
