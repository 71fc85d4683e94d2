"""Adapters of modules that are some rows of one tensor of the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.convert.lora_products import product_of
from exporter.merge.operations import PartSum
from exporter.verify.rows import Reference
from tests.support.architectures import FUSED, make_architecture
from tests.support.roads import load_tensors, train_and_merge

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Its gate, q, k and v are one tensor on disk, its gate and up another."""
    folder = tmp_path_factory.mktemp("fused") / "base"
    return make_architecture("hrm_text", folder, dtype="float32")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_each_part_is_merged_into_its_rows(base, tmp_path, settings):
    from peft import LoraConfig

    targets = FUSED["hrm_text"].linear
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets, **settings)

    found = train_and_merge(base, config, tmp_path)

    assert found.error < 1e-5
    assert found.error < found.effect / 1000
    fused = [
        name for name, change in found.plan.changes.items() if isinstance(change.steps[0], PartSum)
    ]
    assert len(fused) > 1
    reference = Reference(found.plan)
    for name in fused[:2]:
        rows = reference.rows(name, np.arange(len(found.tensors[name])))
        assert np.abs(rows.after - found.tensors[name].double().numpy()).max() < 1e-5


def test_a_gguf_adapter_gets_the_parts_as_one_pair(base, tmp_path):
    import torch
    from peft import LoraConfig

    targets = FUSED["hrm_text"].linear
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=targets, rank_pattern={"v_proj": 2}
    )
    found = train_and_merge(base, config, tmp_path)
    before = load_tensors(base)

    for name, change in found.plan.changes.items():
        if isinstance(change.steps[0], PartSum):
            product = product_of(name, found.plan)
            torch.testing.assert_close(
                product.b @ product.a, found.tensors[name] - before[name], atol=1e-5, rtol=0
            )
