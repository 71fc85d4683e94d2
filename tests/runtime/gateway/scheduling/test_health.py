"""An engine that computes no more is restarted, though it says that it is well."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from runtime.engine.opened_model import open_model
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.health import health_route, longest_step_s
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.scheduling.upstream import is_well
from runtime.gateway.settings import Settings
from tests.support.fake_pool import asked, eventually, running
from tests.support.gguf_headers import llama
from tests.support.raw import write_tiny_gguf

MANY = "root ::= (" + " | ".join(['"a"'] * 4000) + ")*"
"""16 KB: unpatched, llama.cpp tries the cube of the number of alternatives for each candidate."""


def test_a_large_model_has_longer_to_answer_than_a_small_one(tmp_path):
    small = open_model(write_tiny_gguf(tmp_path / "m.gguf"))
    large = replace(small, header=llama(tmp_path / "l.gguf"))  # 8 billion parameters
    seeing = replace(small, projector=tmp_path / "m.gguf")

    assert longest_step_s(small, 4) < 1
    assert longest_step_s(small, 4) < longest_step_s(seeing, 4)
    assert 300 < longest_step_s(large, 16) < longest_step_s(large, 8) < 1200


@pytest.mark.lasting
def test_an_engine_that_only_says_that_it_is_well_is_restarted(model, tmp_path):
    stuck = tmp_path / "stuck"

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        async with pool.using(catalog.find("m")) as engine:
            first, address = engine.server, engine.address
            stuck.touch()
            assert await is_well(address, "/health", 1)
            assert not await is_well(address, health_route("llama-server"), 0.2)
            await eventually(lambda: engine.server is not first)
            stuck.unlink()
            await eventually(lambda: engine.is_loaded)

    running(test, tmp_path, model("m", stuck=str(stuck)), health_s=0.4)


@pytest.mark.llamacpp
@pytest.mark.lasting
def test_alternatives_under_a_star_keep_nobody_waiting(toolchain, tmp_path):
    model = open_model(write_tiny_gguf(tmp_path / "m.gguf"))

    async def test() -> None:
        pool = EnginePool(Settings(parallel=2, context=64, health_s=5), toolchain)
        gateway = Gateway(pool.settings, Catalog([model]), pool)
        body = {"prompt": "x", "n_predict": 8}
        try:
            hostile = asked(gateway, "/completion", {**body, "grammar": MANY}, patience_s=20)
            other = asked(gateway, "/completion", body, patience_s=20)
            answers = await asyncio.gather(hostile, other)
            assert [status for status, _ in answers] == [200, 200]
            assert next(iter(pool.engines.values())).restarts == 0
        finally:
            await pool.close()

    asyncio.run(test())
