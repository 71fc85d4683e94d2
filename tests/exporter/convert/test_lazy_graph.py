"""The converter's deferred tensors: what they are made of, and their values, again and again."""

from __future__ import annotations

from collections import Counter

import pytest

from exporter.convert.lazy_graph import Leaf, SharedReads, evaluate, sources, split_stack
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
