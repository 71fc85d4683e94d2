"""Engines that take more memory than was planned: they are restarted, and others keep theirs."""

from __future__ import annotations

import sys

import pytest

from runtime.engine import memory_fit, memory_limit
from runtime.gateway.api_errors import ApiError
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from tests.support.fake_pool import asked, eventually, hold, running

pytestmark = [
    pytest.mark.lasting,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]

LARGE = 200  # MiB; the model and its context take less than one


@pytest.fixture(autouse=True)
def tight(monkeypatch):
    monkeypatch.setattr(memory_limit, "SLACK", 64 << 20)
    monkeypatch.setattr(memory_fit, "PROMPT_CACHE_MAX", 0)


def test_an_engine_that_grows_for_a_request_is_restarted(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        route, body = "/v1/completions", {"model": "m", "prompt": "x"}
        other = {"model": "other", "prompt": "x"}
        assert (await asked(gateway, route, body))[0] == 200
        assert (await asked(gateway, route, other))[0] == 200

        status, told = await asked(gateway, route, {**body, "prompt": "large"})

        assert status == 503, told
        engine = next(iter(pool.engines.values()))
        await eventually(lambda: engine.restarts == 1)
        assert (await asked(gateway, route, body))[0] == 200
        assert [one.restarts for one in pool.engines.values()] == [1, 0]
        text = (tmp_path / "told").read_text()
        assert "because it took" in text
        assert "of memory and may take" in text

    running(test, tmp_path, model("m", mib=LARGE), model("other"))


def test_an_engine_that_grows_while_it_loads_is_a_failure_that_is_told(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        with pytest.raises(ApiError, match="because it took") as caught:
            await hold(pool, catalog.find("m"))
        assert "while loading" in caught.value.message
        assert [engine.state for engine in pool.engines.values()] == ["failed"]

    running(test, tmp_path, model("m", load_mib=LARGE))


def test_with_flags_of_the_user_nothing_is_known_and_nothing_killed(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        body = {"model": "m", "prompt": "large"}
        assert (await asked(gateway, "/v1/completions", body))[0] == 200

    running(test, tmp_path, model("m", mib=LARGE), extra=("--mlock",))
