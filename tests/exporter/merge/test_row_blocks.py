"""Tensors that are read and merged in blocks of rows."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest

from exporter.core.buffer_pool import Pool
from exporter.core.errors import AdapterError, CheckpointError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge import row_blocks
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.merge.row_blocks import TILE, PlainSum, row_bounds
from tests.support.tiny import make_base

pytestmark = pytest.mark.trained

SHAPES = ((1, 32, 1), (7, 640, 8), (320, 256, 8), (1001, 129, 3), (257, 1024, 64), (97, 384, 300))
"""(rows, columns, rank)"""


def opened(base, *adapters, **options) -> MergedTensors:
    named = [WeightedAdapter(open_adapter(adapter), 0.7) for adapter in adapters]
    return MergedTensors(plan_merge(open_checkpoint(base), named, **options))


@pytest.mark.parametrize("dtype", ["float32", "base"])
@pytest.mark.parametrize("n_values", [1, 2500, 1 << 30])
def test_blocks_are_the_tensor(tiny_base, tiny_adapter, monkeypatch, dtype, n_values):
    import torch

    tensors = opened(tiny_base, tiny_adapter, tiny_adapter, dtype=dtype)
    whole = {name: tensors.read(name) for name in tensors.names}
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", n_values)

    for name in tensors.names:
        blocks = list(tensors.row_blocks(name))
        rows = torch.cat([block.compute() for block in blocks])
        assert [len(block.compute()) for block in blocks] == [block.n_rows for block in blocks]
        assert rows.dtype == whole[name].dtype
        assert torch.equal(rows.reshape(whole[name].shape), whole[name]), name
        assert not any(block.is_held for block in blocks)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 640, 128_256])
@pytest.mark.parametrize("columns", [1, 640, 8192, 1 << 20])
def test_blocks_are_of_about_one_size(n_rows, columns):
    bounds = list(row_bounds(n_rows, columns))

    sizes = [last - first for first, last in bounds]
    assert [bounds[0][0], bounds[-1][1]] == [0, n_rows]
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    assert all(first % TILE == 0 for first, _ in bounds)
    assert sizes[-1] >= sizes[0]
    assert max(sizes) < 2 * TILE or max(sizes) * columns <= 2 * row_blocks.BLOCK_VALUES


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_sum_of_a_block_is_that_of_the_whole_tensor(shape, monkeypatch):
    import torch

    weight, one = random_sum(*shape)
    whole = weight.clone().addmm_(one.left, one.right, alpha=one.factor)

    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", max(1, weight.numel() // 3))
    for first, last in row_bounds(*weight.shape):
        one.add(weight[first:last], first)
    assert torch.equal(weight, whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_rounded_sum_is_that_of_pefts_layer(shape, dtype, monkeypatch):
    import torch

    weight, one = random_sum(*shape)
    if not one.is_same_by_rows():
        pytest.skip("this processor's library rounds blocks otherwise, and PEFT merges")
    weight = weight.to(getattr(torch, dtype))
    expected = merged_by_peft(weight.clone(), one)
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", max(1, weight.numel() // 3))

    one.add_rounded(weight, Pool())

    assert weight.dtype == expected.dtype
    assert torch.equal(weight, expected)


def test_products_whose_blocks_have_other_bits_are_noticed(monkeypatch):
    import torch

    _, one = random_sum(600, 1024, 1)  # a sum of one term has no order
    assert one.is_same_by_rows()
    multiply = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor,
        "addmm_",
        lambda rows, *pair, alpha: multiply(rows, *pair, alpha=alpha).mul_(1 + 1e-7),
    )

    assert not one.is_same_by_rows()


@pytest.mark.parametrize("dtype", ["float32", "base"])
def test_where_blocks_have_other_bits_the_whole_tensor_is_merged(
    tiny_base, tiny_adapter, monkeypatch, dtype
):
    import torch

    expected = opened(tiny_base, tiny_adapter, dtype=dtype)
    monkeypatch.setattr(PlainSum, "is_same_by_rows", lambda one: False)
    tensors = opened(tiny_base, tiny_adapter, dtype=dtype)
    (name,) = [name for name in tensors.names if name.endswith("layers.0.self_attn.q_proj.weight")]

    blocks = list(tensors.row_blocks(name))

    assert all(block.is_held for block in blocks)
    whole = torch.cat([block.compute() for block in blocks])
    assert torch.equal(whole, expected.read(name))


def random_sum(n_rows, columns, rank):
    """A weight (n_rows, columns) in float32, and a plain pair for it."""
    import torch

    torch.manual_seed(n_rows + columns + rank)
    left, right = torch.randn(n_rows, rank), torch.randn(rank, columns)
    return torch.randn(n_rows, columns), PlainSum(left, right, 1.7)


def merged_by_peft(weight, one):
    """The weight with the pair merged by PEFT's linear layer."""
    import torch
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Linear

    rank = one.right.shape[0]
    config = LoraConfig(r=rank, lora_alpha=1, init_lora_weights=False)
    base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer = Linear(base, "default", config=config, r=rank, lora_alpha=1)
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.lora_A["default"].weight = torch.nn.Parameter(one.right)
    layer.lora_B["default"].weight = torch.nn.Parameter(one.left)
    layer.scaling["default"] = one.factor
    layer.merge()
    return layer.get_base_layer().weight.data


@pytest.mark.llamacpp
@pytest.mark.parametrize("dtype", ["float32", "base"])
def test_a_file_is_the_same_however_its_tensors_are_read(
    toolchain, tiny_base, tiny_adapter, tmp_path, monkeypatch, dtype
):
    written = []
    for n_values in (1500, 1 << 30):
        monkeypatch.setattr(row_blocks, "BLOCK_VALUES", n_values)
        path = tmp_path / f"{n_values}" / "x.gguf"
        path.parent.mkdir()
        request = ExportRequest(((tiny_adapter, 1.0),), tiny_base, ("Q4_K_M", "F16"), (
            path, path.with_name("f.gguf"),
        ), merge_dtype=dtype)  # fmt: skip
        export(request, toolchain)
        written.append([made.read_bytes() for made in sorted(path.parent.iterdir())])

    assert written[0] == written[1]


def test_a_value_that_is_no_number_is_counted_over_the_whole_tensor(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", num_hidden_layers=1)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] = torch.nan
    weights["model.embed_tokens.weight"][-1, 0] = torch.inf
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", 2048)

    with pytest.raises(CheckpointError, match=r"2 of .* values of `model\.embed_tokens\.weight`"):
        computed(opened(base), "model.embed_tokens.weight")


def test_a_product_that_is_no_number_is_the_adapters_fault(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    import torch
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    values = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in values if "layers.0.mlp.down_proj.lora_B" in name)
    values[name][-1, 0] = torch.nan
    save_file(values, adapter / "adapter_model.safetensors", {"format": "pt"})
    monkeypatch.setattr(row_blocks, "BLOCK_VALUES", 2048)

    with pytest.raises(AdapterError, match=r"merging makes 512 of .* NaN or infinite"):
        computed(opened(tiny_base, adapter), "model.layers.0.mlp.down_proj.weight")


def computed(tensors, name):
    return [block.compute() for block in tensors.row_blocks(name)]
