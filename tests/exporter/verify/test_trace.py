"""Where the values of a GGUF's tensors come from."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from exporter.merge.apply import MergedTensors
from exporter.verify import trace as tracing
from exporter.verify.expected import expected_of
from exporter.verify.trace import trace
from tests.support.architectures import make_architecture
from tests.support.tiny import make_tokenizer
from tests.support.verified import plan_of

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.lasting,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_a_tensor_without_steps_comes_from_itself(toolchain, tmp_path, monkeypatch, name):
    base = make_architecture(name, tmp_path / name)
    make_tokenizer(base)
    seen = set()
    plan = plan_of(base)
    shape = MergedTensors(plan).shape
    with expected_of(plan, toolchain) as expected:
        for slot in expected.conversion.slots:
            total = math.prod(slot.shape[:-1])
            rows = np.unique(np.linspace(0, total - 1, 7).astype(int))
            found = trace(slot, rows, shape)
            with monkeypatch.context() as patch:
                patch.setattr(tracing, "leaf_name", lambda node: None)
                probed = trace(slot, rows, shape)
            seen.add(found.is_whole_row)
            assert not probed.is_whole_row
            for field in fields(found)[:-1]:
                one, other = (getattr(each, field.name) for each in (found, probed))
                assert np.array_equal(one, other), (slot.name, field.name)
                taken = getattr(found.take(np.array([0])), field.name)
                assert np.array_equal(taken, other[:1]), (slot.name, field.name)

    assert seen == {True, False}
