"""The memory that an engine may take, and the copies of its state that fit into what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.engine.memory_fit import Fit, FitOptions, fit
from runtime.engine.memory_limit import MEDIA_SLACK, SLACK, copies, copy_nbytes, memory_limit
from tests.support.gguf_headers import llama

GB = 1_000_000_000


def fitted(model, free: int = 40 * GB) -> Fit:
    return fit(model, [], FitOptions(), free=free, cores=4, backend="cpu")


def test_an_engine_may_take_its_plan_and_no_second_model(tmp_path):
    model = llama(tmp_path / "m.gguf")
    plan = fitted(model)
    limit = memory_limit(model, plan, 1)
    need = plan.need

    assert need.cache + need.work + SLACK < limit.growth < need.weights + need.cache + 4 * SLACK
    assert limit.loading == need.weights + limit.growth
    assert memory_limit(model, plan, 1, sees=True).growth == limit.growth + MEDIA_SLACK


def test_a_model_whose_state_can_be_cut_back_has_no_copies(tmp_path):
    model = llama(tmp_path / "m.gguf")

    assert copies(model, fitted(model), 4) is None


@pytest.mark.parametrize(
    ("keys", "nbytes"),
    [
        ({"llama.attention.sliding_window": 512}, 1024 * 131_072),
        ({"llama.ssm.inner_size": 8192, "llama.ssm.state_size": 128}, 32 * 8192 * 128 * 4),
        ({"llama.wkv.head_size": 64}, 32 * 4096 * 64 * 4),
    ],
)
def test_copies_of_a_state_fit_into_the_room_for_earlier_prompts(keys, nbytes, tmp_path):
    model = llama(tmp_path / "m.gguf", **keys)
    plan = fitted(model)
    room = plan.prompt_cache

    assert copy_nbytes(model, plan) == nbytes
    assert copies(model, plan, 1) == min(32, room // nbytes)
    assert copies(model, plan, 4) == max(1, room // (4 * nbytes))
    assert copies(model, replace(plan, prompt_cache=0), 4) == 1
    grown = (
        memory_limit(model, plan, 4).growth
        - memory_limit(llama(tmp_path / "n.gguf"), plan, 4).growth
    )
    assert grown == 4 * copies(model, plan, 4) * nbytes
