"""The converter's deferred tensors: what they are made of, and their values, again and again."""

from __future__ import annotations

from collections import Counter

import pytest

from exporter.convert.lazy_graph import (
    Leaf,
    SharedReads,
    before_casts,
    evaluate,
    sources,
    split_stack,
)
from exporter.llamacpp.converter_import import imported

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.fixture
def tensors(toolchain):
    """Three matrices (4, 2), and the lazy tensors that stand for them."""
    import torch

    with imported(toolchain):
        from conversion.base import LazyTorchTensor

        values = {name: torch.arange(8.0).reshape(4, 2) * (i + 1) for i, name in enumerate("abc")}
        meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, (4, 2))
        nodes = {name: LazyTorchTensor(meta=meta, args=(name,), func=len) for name in "abc"}
        yield values, nodes


def test_a_node_is_run_again_on_other_values(tensors):
    values, nodes = tensors
    node = (nodes["a"] + nodes["b"]).permute(1, 0)

    first = evaluate(node, values.__getitem__)
    second = evaluate(node, lambda name: values[name] * 10)

    assert sources(node) == ("a", "b")
    assert first.equal((values["a"] + values["b"]).T)
    assert second.equal(first * 10)


def test_experts_come_one_after_the_other(tensors):
    import numpy as np
    import torch

    values, nodes = tensors
    stack = torch.stack([nodes["a"], nodes["b"] * 2], dim=0).numpy()
    asked = []

    def read(name):
        asked.append(name)
        return values[name]

    reads = SharedReads([stack], read)
    parts = reads.parts(stack)

    assert len(split_stack(stack)) == 2
    assert np.array_equal(next(parts), values["a"].numpy())
    assert asked == ["a"]
    assert np.array_equal(next(parts), values["b"].numpy() * 2)


def test_a_tensor_cut_in_three_is_read_once_and_then_let_go(tensors):
    import numpy as np

    values, nodes = tensors
    cuts = [nodes["a"][:2], nodes["a"][2:3], nodes["a"][3:] + nodes["b"][:1], Leaf("c")]
    asked = Counter()

    def read(name):
        asked[name] += 1
        return values[name].clone()

    reads = SharedReads(cuts, read)
    made = []
    for cut in cuts:
        made += list(reads.parts(cut))
        assert set(reads.held) <= {"a"}

    assert np.array_equal(np.concatenate(made[:2]), values["a"].numpy()[:3])
    assert np.array_equal(made[3], values["c"].numpy())
    assert asked == {"a": 1, "b": 1, "c": 1}
    assert reads.held == {}


@pytest.fixture
def half(toolchain):
    """A function that gives a lazy tensor of 16-bit or 32-bit values."""
    with imported(toolchain):
        from conversion.base import LazyTorchTensor

        def make(dtype, shape=(4, 2)):
            meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, shape)
            return LazyTorchTensor(meta=meta, args=("a",), func=len)

        yield make


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_values_stay_in_16_bits_until_their_rows_are_used(half, name):
    import torch

    dtype = getattr(torch, name)
    values = torch.randn(4, 2).to(dtype)
    node = half(dtype).to(torch.float32).numpy()

    (part,) = SharedReads([node], lambda _: values).parts(node)

    assert part.dtype == dtype
    assert part.float().numpy().tolist() == evaluate(node, lambda _: values).tolist()


def test_only_casts_are_left_out(half):
    import torch

    bf16, f32 = half(torch.bfloat16), half(torch.float32)
    doubled = bf16.to(torch.float32) * 2

    assert before_casts(bf16.to(torch.float32)) is bf16
    assert before_casts(f32.numpy()) is f32
    assert before_casts(doubled.numpy()) is doubled
    for node in (
        bf16.view(torch.float32), f32.to(torch.bfloat16), f32.to(torch.int32), bf16.abs(),
        bf16.to(torch.float32).to(torch.bfloat16), half(torch.int32).view(torch.float32),
    ):  # fmt: skip
        assert before_casts(node) is node
