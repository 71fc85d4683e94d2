"""Quantizing with an importance matrix, against llama-quantize with the same one."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from exporter.convert.gguf_layout import Slot
from exporter.convert.lazy_graph import Leaf
from exporter.core.errors import InputError, ModelError, UnsupportedError
from exporter.core.ggml_types import FLOATS, FTYPES, GGMLType
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain, run_tool
from exporter.merge import row_blocks
from exporter.quantize.imatrix import ImportanceMatrix, check_fit, importance, keys, read_imatrix
from exporter.quantize.quantizer import runs
from exporter.quantize.type_recipe import Recipe
from tests.support.reference import convert_with_llamacpp, quantize_with_llamacpp, read_gguf
from tests.support.tiny import TEXT, make_base, make_tokenizer

NEEDY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
OURS = ("decant.", "quantize.imatrix.")


@dataclass(frozen=True)
class Measured:
    """A base, the converter's GGUF of it, and what llama-imatrix measured, in both formats."""

    base: Path
    whole: Path
    new: Path
    old: Path


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one run of rows in every matrix; with experts, runs that end amid one."""
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", 40_000)


@pytest.fixture(scope="session", params=["dense", "experts"])
def measured(request, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp(request.param)
    make = make_experts if request.param == "experts" else make_dense
    base = make(folder / "base")
    whole = convert_with_llamacpp(toolchain, base, folder / "whole.gguf")
    text = folder / "calibration.txt"
    text.write_text(TEXT)
    made = []
    for form in ("gguf", "dat"):
        made.append(folder / f"imatrix.{form}")
        run_tool(
            toolchain,
            "llama-imatrix",
            ["-m", str(whole), "-f", str(text), "-o", str(made[-1]), "-c", "64", "-t", "2",
             "--output-format", form],
        )  # fmt: skip
    return Measured(base, whole, *made)


def make_dense(folder: Path) -> Path:
    return make_base(folder, num_hidden_layers=1)


def make_experts(folder: Path) -> Path:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=320, max_position_embeddings=256,
        num_local_experts=3, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def export_all(
    measured: Measured, quants: tuple[str, ...], folder: Path, toolchain: Toolchain, recipe: Recipe
) -> dict[str, Path]:
    ours = {quant: folder / f"ours-{quant}.gguf" for quant in quants}
    request = ExportRequest(
        (), measured.base, quants, tuple(ours.values()), merge_dtype="base", threads=2
    )
    export(replace(request, recipe=recipe), toolchain)
    return ours


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
@pytest.mark.parametrize("form", ["new", "old"])
def test_with_an_importance_matrix_every_byte_is_llama_quantizes(
    measured, form, toolchain, tmp_path
):
    matrix = getattr(measured, form)
    quants: tuple[str, ...] = ("IQ2_S", "Q4_K_M")
    if form == "new" and "experts" in str(measured.base):
        quants = ("IQ1_M", "IQ2_XXS", "Q4_K_M")
    if form == "new" and "dense" in str(measured.base):
        quants = tuple(quant for quant in FTYPES if quant not in FLOATS)
    ours = export_all(measured, quants, tmp_path, toolchain, Recipe(imatrix=read_imatrix(matrix)))

    differing = {}
    with imported(toolchain):
        for quant, path in ours.items():
            usual = quantize_with_llamacpp(
                toolchain, measured.whole, tmp_path / "usual.gguf", quant, "--imatrix", str(matrix)
            )
            expected, actual = read_gguf(usual)[1], read_gguf(path)[1]
            if wrong := [name for name in expected if actual.get(name) != expected[name]]:
                differing[quant] = wrong
    assert differing == {}


@pytest.mark.llamacpp
@pytest.mark.trained
def test_the_keys_of_an_importance_matrix_are_llama_quantizes_with_bare_names(
    measured, toolchain, tmp_path
):
    ours = export_all(
        measured, ("Q4_0",), tmp_path, toolchain, Recipe(imatrix=read_imatrix(measured.new))
    )
    usual = quantize_with_llamacpp(
        toolchain, measured.whole, tmp_path / "usual.gguf", "Q4_0", "--imatrix", str(measured.new)
    )

    with imported(toolchain):
        told = [read_gguf(path)[0] for path in (usual, ours["Q4_0"])]
    expected, actual = (
        {key: value for key, value in each.items() if key.startswith("quantize.imatrix")}
        for each in told
    )
    assert list(actual) == list(expected)
    for key, (kind, value) in expected.items():
        bare = Path(value).name if isinstance(value, str) else value
        assert actual[key] == (kind, bare), key


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_quantization_that_needs_a_matrix_says_how_to_get_one(measured, toolchain, tmp_path):
    with pytest.raises(UnsupportedError, match="IQ2_XXS needs an importance matrix") as caught:
        export_all(measured, ("IQ2_XXS",), tmp_path, toolchain, Recipe())

    assert "--imatrix" in caught.value.hint
    assert "--calibrate" in caught.value.hint


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_matrix_without_a_needy_tensor_is_refused_before_work(measured, toolchain, tmp_path):
    """llama-quantize stops amid its work; in a table ggml would end the process."""
    matrix = read_imatrix(measured.new)
    name = "blk.0.attn_q.weight"
    partial = replace(matrix, entries={k: v for k, v in matrix.entries.items() if k != name})

    with pytest.raises(UnsupportedError, match=f"no values for `{name}`"):
        export_all(measured, ("IQ2_S",), tmp_path, toolchain, Recipe(imatrix=partial))
    with pytest.raises(UnsupportedError, match=r"no values for `output.weight`"):
        export_all(measured, ("IQ2_XXS",), tmp_path, toolchain, Recipe(imatrix=matrix, pure=True))


def slot(name: str, *shape: int) -> Slot:
    return Slot(name, shape, GGMLType.by_name("F16"), Leaf(name))


def matrix_of(**sizes: int) -> ImportanceMatrix:
    import numpy as np

    entries = {
        name.replace("__", "."): np.arange(size, dtype=np.float32) for name, size in sizes.items()
    }
    return ImportanceMatrix(Path("here/m.gguf"), "0" * 64, (), 0, entries)


def test_a_matrix_of_another_model_is_refused_by_name_and_sizes():
    slots = [slot("a.weight", 8, 32), slot("e.weight", 4, 8, 32), slot("token_embd.weight", 9, 32)]

    check_fit(matrix_of(a__weight=32, e__weight=128, token_embd__weight=5), slots)
    with pytest.raises(InputError, match=r"`a.weight` with 64 values instead of 32"):
        check_fit(matrix_of(a__weight=64), slots)
    with pytest.raises(InputError, match=r"`e.weight` with 32 values instead of 128"):
        check_fit(matrix_of(e__weight=32), slots)
    with pytest.raises(InputError, match=r"1 of its 2 entries name no tensor.*`b.weight`"):
        check_fit(matrix_of(a__weight=32, b__weight=32), slots)


def test_each_experts_rows_have_its_own_vector():
    found = importance(matrix_of(e__weight=6), [slot("e.weight", 3, 4, 2)])["e.weight"]

    given = [(start, stop, vector.tolist()) for start, stop, vector in runs(found, 3, 6)]
    assert given == [(0, 1, [0, 1]), (1, 5, [2, 3]), (5, 6, [4, 5])]


def test_the_paths_in_a_matrix_stay_out_of_the_file():
    matrix = replace(matrix_of(a=1), datasets=("/home/me/wiki.txt",), chunks=7)

    assert keys(matrix) == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "wiki.txt",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
        "decant.imatrix.sha256": "0" * 64,
    }


def old_format(*entries: tuple[bytes, int, tuple[float, ...]]) -> bytes:
    packed = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        packed += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        packed += struct.pack(f"<{len(values)}f", *values)
    return packed


def test_the_old_format_is_read_with_and_without_its_tail(tmp_path):
    path = tmp_path / "m.dat"
    body = old_format((b"a.weight", 2, (2.0, 4.0)), (b"b.weight", 0, (3.0,)))
    path.write_bytes(body)
    bare = read_imatrix(path)
    path.write_bytes(body + struct.pack("<ii", 5, 6) + b"ab.txt")
    whole = read_imatrix(path)

    assert {name: list(values) for name, values in bare.entries.items()} == {
        "a.weight": [1.0, 2.0],
        "b.weight": [3.0],
    }
    assert (bare.chunks, bare.datasets) == (0, ())
    assert (whole.chunks, whole.datasets) == (5, ("ab.txt",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is a text",
        b"GGUF",
        old_format((b"a", 1, (1.0, 2.0)))[:-2],
        struct.pack("<ii", 1, 1 << 30),
        struct.pack("<ii", 1, -1),
        struct.pack("<iic", 1, 1, b"a") + struct.pack("<ii", 1, (1 << 31) - 1),
        struct.pack("<i", -5),
        old_format((b"a", 1, (float("nan"),))),
    ],
)
def test_what_is_no_matrix_is_refused(content, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=r"`.*m` is not"):
        read_imatrix(path)


def test_a_missing_matrix_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="there is no importance matrix") as caught:
        read_imatrix(tmp_path / "no.gguf")

    assert "--calibrate" in caught.value.hint
