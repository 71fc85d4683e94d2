"""An engine that is in one token for hours is restarted, though it says that it is well."""

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
from tests.support.fake_pool import asked, eventually
from tests.support.gguf_headers import llama
from tests.support.raw import write_tiny_gguf

ENDLESS = "root ::= (" + " | ".join(['"a"'] * 4000) + ")*"
"""16 KB: for each candidate, llama.cpp tries the cube of the number of alternatives."""


def test_a_large_model_has_longer_to_answer_than_a_small_one(tmp_path):
    small = open_model(write_tiny_gguf(tmp_path / "m.gguf"))
    large = replace(small, header=llama(tmp_path / "l.gguf"))  # 8 billion parameters
    seeing = replace(small, projector=tmp_path / "m.gguf")

    assert longest_step_s(small, 4) < 1
    assert longest_step_s(small, 4) < longest_step_s(seeing, 4)
    assert 300 < longest_step_s(large, 16) < longest_step_s(large, 8) < 1200


@pytest.mark.llamacpp
@pytest.mark.lasting
def test_a_grammar_that_never_ends_costs_one_restart(toolchain, tmp_path):
    model = open_model(write_tiny_gguf(tmp_path / "m.gguf"))

    async def test() -> None:
        pool = EnginePool(Settings(parallel=2, context=64, health_s=1), toolchain)
        gateway = Gateway(pool.settings, Catalog([model]), pool)
        body = {"prompt": "x", "n_predict": 2}
        try:
            assert (await asked(gateway, "/completion", body))[0] == 200
            engine = next(iter(pool.engines.values()))
            first, address = engine.server, engine.address
            hostile = {**body, "grammar": ENDLESS}
            asking = asyncio.ensure_future(asked(gateway, "/completion", hostile, patience_s=1))
            await asyncio.sleep(0.5)
            assert await is_well(address, "/health", 1)
            assert not await is_well(address, health_route("llama-server"), 0.5)
            await eventually(lambda: engine.server is not first)
            await asking
            assert (await asked(gateway, "/completion", body))[0] == 200
            assert engine.restarts == 1
        finally:
            await pool.close()

    asyncio.run(test())
