"""`-q auto`: the size that is asked for, the bytes of llama-quantize, and what it loses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from exporter.core import resumable_file
from exporter.core.errors import InputError, UnsupportedError
from exporter.core.events import Note, Progress
from exporter.core.ggml_types import AUTO, GGMLType
from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.quantize.auto_types import candidates_of, file_type, sensitivity
from exporter.quantize.quantizer import Quantizer
from exporter.quantize.size_budget import SizeBudget
from exporter.quantize.type_recipe import Recipe, parse_rule, read_recipe
from tests.support.reference import convert_with_llamacpp, quantize_with_llamacpp
from tests.support.reference import read_gguf as read_with_llamacpp
from tests.support.tiny import make_base

Q4_K, Q6_K, Q8_0, F32 = map(GGMLType.by_name, ("Q4_K", "Q6_K", "Q8_0", "F32"))


def made(base, path, toolchain, **recipe):
    request = ExportRequest((), base, (AUTO,), (path,), recipe=Recipe(**recipe), force=True)
    export(request, toolchain)
    return read_gguf(path)


def bits(file) -> float:
    return sum(t.nbytes for t in file.tensors) * 8 / sum(math.prod(t.shape) for t in file.tensors)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    """A base with so many tensors that one of them is little of the file."""
    return make_base(tmp_path_factory.mktemp("wide") / "base", num_hidden_layers=12)


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize("wanted", [4.0, 4.83, 6.5])
def test_bits_per_weight_are_reached_from_below(wide_base, toolchain, tmp_path, wanted):
    file = made(wide_base, tmp_path / "x.gguf", toolchain, budget=SizeBudget(bits=wanted))

    assert 0.99 * wanted <= bits(file) <= wanted
    assert file.text("decant.quant") == f"AUTO --bpw {wanted:g}"


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_file_is_never_larger_than_asked_header_included(wide_base, toolchain, tmp_path):
    path = tmp_path / "x.gguf"
    for nbytes in (2_900_000, 3_333_333):
        made(wide_base, path, toolchain, budget=SizeBudget(nbytes=nbytes))

        assert 0.99 * nbytes <= path.stat().st_size <= nbytes
    with pytest.raises(UnsupportedError, match=r"as small as .*: the smallest"):
        made(wide_base, path, toolchain, budget=SizeBudget(nbytes=500_000))


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_a_choice_is_the_same_again_and_llama_quantize_makes_its_bytes(
    wide_base, toolchain, tmp_path
):
    """What `inspect --recipe` prints is what llama-quantize reads with --tensor-type-file."""
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    file = made(wide_base, first, toolchain)
    made(wide_base, again, toolchain)
    assert first.read_bytes() == again.read_bytes()
    rules = tmp_path / "rules.txt"
    rules.write_text("\n".join(map(str, read_recipe(first))))
    float_file = convert_with_llamacpp(toolchain, wide_base, tmp_path / "float.gguf")

    usual = quantize_with_llamacpp(
        toolchain, float_file, tmp_path / "usual.gguf", "Q4_K_M", "--tensor-type-file", str(rules)
    )

    with imported(toolchain):
        assert read_with_llamacpp(first)[1] == read_with_llamacpp(usual)[1]
    stock = quantize_with_llamacpp(toolchain, float_file, tmp_path / "stock.gguf", "Q4_K_M")
    assert 0.99 < sum(t.nbytes for t in file.tensors) / nbytes_of(stock) <= 1
    assert {t.type for t in file.tensors} != {t.type for t in read_gguf(stock).tensors}


def nbytes_of(path) -> int:
    return sum(tensor.nbytes for tensor in read_gguf(path).tensors)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_recipe_repeats_the_types_of_any_gguf_and_rules_go_before(wide_base, toolchain, tmp_path):
    chosen = made(wide_base, tmp_path / "a.gguf", toolchain, budget=SizeBudget(bits=5.0))
    rules = read_recipe(tmp_path / "a.gguf")
    own = (parse_rule("attn_k=q8_0"),)

    same = made(wide_base, tmp_path / "b.gguf", toolchain, listed_types=rules)
    other = made(wide_base, tmp_path / "c.gguf", toolchain, listed_types=rules, tensor_types=own)

    assert types(same) == types(chosen)
    kept = {name: kind for name, kind in types(other).items() if "attn_k" not in name}
    assert kept == {name: kind for name, kind in types(chosen).items() if "attn_k" not in name}
    assert {kind for name, kind in types(other).items() if "attn_k" in name} == {Q8_0}
    with pytest.raises(InputError, match="names no tensor of this model"):
        strange = (*rules, parse_rule("ffn_other=q8_0"))
        made(wide_base, tmp_path / "d.gguf", toolchain, listed_types=strange)


def types(file) -> dict[str, GGMLType]:
    return {tensor.name: tensor.type for tensor in file.tensors}


@pytest.mark.llamacpp
@pytest.mark.trained
def test_rules_hold_within_a_size(wide_base, toolchain, tmp_path):
    budget, rule = SizeBudget(bits=4.5), parse_rule("attn_q=q8_0")

    file = made(wide_base, tmp_path / "x.gguf", toolchain, budget=budget, tensor_types=(rule,))

    assert {t.type for t in file.tensors if "attn_q" in t.name} == {Q8_0}
    assert 0.99 * 4.5 <= bits(file) <= 4.5


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_larger_size_loses_less_of_the_weights(wide_base, toolchain, tmp_path):
    """And the size of Q4_K_M loses less by chosen types than by the stock mixture."""
    lost = []
    for number, budget in enumerate((SizeBudget(bits=4.0), None, SizeBudget(bits=6.0))):
        made(wide_base, tmp_path / f"{number}.gguf", toolchain, budget=budget)
        lost.append(weighted_loss(tmp_path / f"{number}.gguf", wide_base, toolchain))
    stock = tmp_path / "stock.gguf"
    export(ExportRequest((), wide_base, ("Q4_K_M",), (stock,)), toolchain)

    assert lost[0] > lost[1] > lost[2]
    assert lost[1] < weighted_loss(stock, wide_base, toolchain)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_stopped_export_goes_on_with_the_same_types(wide_base, toolchain, tmp_path, monkeypatch):
    whole, path, said = tmp_path / "whole.gguf", tmp_path / "x.gguf", []
    made(wide_base, whole, toolchain)
    monkeypatch.setattr(resumable_file, "SYNC_NBYTES", 1)  # every whole tensor is recorded

    def stop(event):
        is_half = isinstance(event, Progress) and event.done * 2 > event.total
        if is_half and event.task == "quantizing":
            raise KeyboardInterrupt

    request = ExportRequest((), wide_base, (AUTO,), (path,))
    with pytest.raises(KeyboardInterrupt):
        export(request, toolchain, report=stop)
    export(request, toolchain, report=said.append)

    assert any(isinstance(event, Note) and "resuming `" in event.message for event in said)
    assert path.read_bytes() == whole.read_bytes()


def weighted_loss(path, base, toolchain) -> float:
    """The sum of relative squared errors, read back by gguf-py, weighted as they are chosen by."""
    plain = path.with_suffix(".f32.gguf")
    if not plain.exists():
        export(ExportRequest((), base, ("F32",), (plain,)), toolchain)
    total = 0.0
    with imported(toolchain):
        import gguf

        readers = [{t.name: t for t in gguf.GGUFReader(one).tensors} for one in (path, plain)]
        for name, tensor in readers[0].items():
            if len(tensor.shape) < 2:
                continue
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            true = readers[1][name].data.reshape(values.shape)
            error = float(((values - true) ** 2).sum() / (true**2).sum())
            total += sensitivity(name, is_tied=False) * error
    return total


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    "name", ["Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S", "Q5_1", "IQ4_NL", "F16"]
)
def test_dequantized_rows_are_those_of_gguf_py(toolchain, name):
    quantizer, kind = Quantizer.load(toolchain), GGMLType.by_name(name)
    rows = np.random.default_rng(3).normal(size=(5, 512)).astype(np.float32)

    packed = quantizer.quantize(rows, kind)

    with imported(toolchain):
        import gguf

        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(quantizer.dequantize(packed, kind, 512), expected.reshape(5, 512))


def test_types_that_need_importance_are_no_candidates_without():
    bare = candidates_of((64, 512), 3.5, has_importance=False)
    measured = candidates_of((64, 512), 3.5, has_importance=True)

    assert {kind.name for kind in measured} - {kind.name for kind in bare} == {"IQ3_XXS"}
    assert {kind.name for kind in candidates_of((64, 96), 3.5, has_importance=True)} == {
        "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"
    }  # fmt: skip
    assert "Q3_K" not in {k.name for k in candidates_of((64, 512), 6.0, has_importance=True)}


def test_a_files_type_is_that_of_most_of_its_weights():
    shapes = {"a": (8, 256), "b": (2, 256), "n": (256,)}
    assert file_type({"a": Q4_K, "b": Q6_K, "n": F32}, shapes) == 15  # MOSTLY_Q4_K_M
    assert file_type({"a": Q6_K, "b": Q4_K, "n": F32}, shapes) == 18  # MOSTLY_Q6_K
    assert file_type({"n": F32}, shapes) == 15


def test_a_tied_embedding_counts_as_the_head():
    assert sensitivity("token_embd.weight", is_tied=True) == sensitivity(
        "output.weight", is_tied=False
    )
    assert sensitivity("token_embd.weight", is_tied=False) < sensitivity(
        "token_embd.weight", is_tied=True
    )
    assert sensitivity("blk.7.attn_v.weight", is_tied=True) > 1
    assert sensitivity("blk.7.ffn_up_exps.weight", is_tied=True) == 1


def test_budgets_are_kept_in_words_that_export_takes():
    assert SizeBudget(bits=4.8).arguments() == ["--bpw", "4.8"]
    assert SizeBudget(nbytes=10**9).arguments() == ["--size", "1000000000"]
    assert replace(SizeBudget(), room=lambda model: 1).arguments() == ["--fit"]
    assert SizeBudget().arguments() == []
