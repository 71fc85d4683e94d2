"""What types lose: the whole error on small tensors, and a change that a 4-bit grid swallows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from exporter.convert.gguf_layout import Slot
from exporter.convert.lazy_graph import Leaf
from exporter.core.ggml_types import AUTO, GGMLType
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from exporter.quantize import type_losses
from exporter.quantize.imatrix import Importance
from exporter.quantize.quantizer import Quantizer
from exporter.quantize.size_budget import SizeBudget
from exporter.quantize.type_losses import UNDONE, Weights, measure_losses
from exporter.quantize.type_recipe import Recipe
from tests.support.tiny import make_adapter, make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]
KINDS = tuple(map(GGMLType.by_name, ("Q4_0", "Q4_K", "Q6_K")))


@pytest.fixture
def quantizer(toolchain) -> Iterator[Quantizer]:
    with imported(toolchain):  # gguf-py, of which the slots' values are made
        yield Quantizer.load(toolchain)


def losses(quantizer, values, importance=None, before=None):
    import torch

    slot = Slot("t", values.shape, GGMLType.by_name("F32"), Leaf("t"))
    weights = Weights(
        lambda _: torch.from_numpy(values),
        None if before is None else lambda _: torch.from_numpy(before),
        {"t"},
    )
    matrix = {"t": importance} if importance else {}
    return measure_losses([slot], weights, {"t": KINDS}, matrix, quantizer, threads=2)["t"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_losses_are_weighted_errors_relative_to_weighted_values(quantizer):
    values = normal(3, 8, 256)  # three experts, each with its own importance
    vectors = np.exp(normal(3, 256, seed=1)).astype(np.float32)

    found = losses(quantizer, values, Importance(vectors, 8))

    for kind in KINDS:
        error = size = 0.0
        for expert in range(3):
            one = Importance(vectors[expert : expert + 1], 8)
            packed = quantizer.quantize(values[expert], kind, one)
            lost = quantizer.dequantize(packed, kind, 256) - values[expert]
            error += float((lost**2 @ vectors[expert]).sum())
            size += float((values[expert] ** 2 @ vectors[expert]).sum())
        assert found[kind] == pytest.approx(error / size, rel=1e-4)


def test_a_sample_of_a_large_tensor_tells_nearly_the_whole(quantizer, monkeypatch):
    values = normal(4096, 512)
    sampled = losses(quantizer, values)
    monkeypatch.setattr(type_losses, "MOST", values.size)
    monkeypatch.setattr(type_losses, "SHARE", 1)

    whole = losses(quantizer, values)

    assert all(sampled[kind] == pytest.approx(whole[kind], rel=0.05) for kind in KINDS)


def test_an_error_that_undoes_a_change_costs_more(quantizer):
    grid = quantizer.quantize(normal(64, 256), KINDS[0])
    before = quantizer.dequantize(grid, KINDS[0], 256)
    change = 1e-3 * normal(64, 1, seed=1) @ normal(1, 256, seed=2)
    values = before + change.astype(np.float32)

    plain, known = losses(quantizer, values), losses(quantizer, values, before=before)

    swallowed = float((change**2).sum() / (values**2).sum())
    assert plain[KINDS[0]] == pytest.approx(swallowed, rel=0.2)  # the grid holds the base exactly
    assert UNDONE - 1 < known[KINDS[0]] / plain[KINDS[0]] <= UNDONE + 1.1  # its steps move, too
    assert known[KINDS[2]] < 1.5 * plain[KINDS[2]]  # six bits hold the change


@pytest.mark.slow
def test_tensors_that_would_lose_the_change_get_more_bits(
    toolchain, quantizer, tmp_path, monkeypatch
):
    """A base on a 4-bit grid: more of the adapter survives than without the cost of its loss."""
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", num_hidden_layers=6)
    weights = load_file(base / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.dim() == 2:
            values = np.ascontiguousarray(tensor.float().numpy())
            packed = quantizer.quantize(values, KINDS[0])
            on_grid = quantizer.dequantize(packed, KINDS[0], values.shape[1])
            weights[name] = type(tensor)(on_grid)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj", "down_proj"])
    survived = []
    for cost in (0.0, UNDONE):
        monkeypatch.setattr(type_losses, "UNDONE", cost)
        path = tmp_path / f"{cost}.gguf"
        recipe = Recipe(budget=SizeBudget(bits=5.5))
        export(ExportRequest(((adapter, 0.05),), base, (AUTO,), (path,), recipe=recipe), toolchain)
        survived.append(share(toolchain, base, adapter, path, tmp_path))

    assert survived[1] > survived[0] + 0.05


def share(toolchain, base, adapter, path, folder) -> float:
    """The part of the adapter's change that is in a file, over all changed tensors."""
    plain, merged = folder / "plain.gguf", folder / "merged.gguf"
    if not plain.exists():
        export(ExportRequest((), base, ("F32",), (plain,)), toolchain)
        export(ExportRequest(((adapter, 0.05),), base, ("F32",), (merged,)), toolchain)
    with imported(toolchain):
        import gguf

        before, after, held = (
            {
                t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
                for t in gguf.GGUFReader(one).tensors
            }
            for one in (plain, merged, path)
        )
    along = size = 0.0
    for name, values in after.items():
        change = values - before[name]
        along += float((held[name] - before[name]) @ change)
        size += float(change @ change)
    return along / size
