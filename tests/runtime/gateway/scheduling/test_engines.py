"""Engines that are slow, deaf or too many: nobody else waits for them, and none is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.adapters import Adapter
from runtime.gateway.api_errors import ApiError
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.request_limits import Limits
from runtime.gateway.scheduling import engine_memory, placement
from runtime.gateway.scheduling.engine_entry import CHOSEN_NICENESS
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings
from tests.runtime.gateway.conftest import children_of
from tests.support.fake_engine import toolchain
from tests.support.fake_pool import asked, eventually, hold, running
from tests.support.tiny_lora import write_tiny_lora


def is_engine(pid: int) -> bool:
    """Whether a process is one of these tests' engines; templates are rendered in children, too."""
    with suppress(OSError):
        return b"fake_engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.lasting
def test_scales_that_clients_choose_have_few_engines_and_the_rest_is_told(model, tmp_path):
    """Also where all of them ask at once, and stay."""
    most: list[int] = []

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        done = asyncio.Event()
        names = [catalog.find(f"m:a@{number}") for number in range(2, 26)]
        tasks = [asyncio.ensure_future(hold(pool, n, "fixed", done)) for n in names]
        while sum(task.done() for task in tasks) < 21:
            most.append(sum(map(is_engine, children_of(os.getpid()))))
            await asyncio.sleep(0.05)
        refused = [task.exception() for task in tasks if task.done()]
        assert {error.status for error in refused} == {503}
        assert "3 engines with client-chosen scales" in refused[0].message
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with pool.using(catalog.find("m:a@26"), "fixed") as engine:  # an idle one goes
            assert engine.is_loaded
        assert sum(engine.is_loaded for engine in pool.engines.values()) == 3

    pool = running(test, tmp_path, model("m"), limits=Limits(scales=3), chosen_s=0)
    assert max(most) <= 3
    assert len(pool.engines) <= 4


@pytest.mark.lasting
def test_engines_for_scales_that_clients_choose_leave_the_processor_to_others(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        for name, more in (("m:a", 0), ("m:a@1", 0), ("m:a@0.5", CHOSEN_NICENESS)):
            async with pool.using(catalog.find(name), "fixed") as engine:
                found = os.getpriority(os.PRIO_PROCESS, engine.server.process.pid)
            assert found == min(19, mine + more), name

    running(test, tmp_path, model("m"))


@pytest.mark.lasting
def test_a_load_that_nobody_awaits_any_more_is_dropped(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        async with pool.planning:  # somebody's memory is being reckoned
            tasks = [
                asyncio.ensure_future(hold(pool, catalog.find(f"m:a@0.{n}"), "fixed"))
                for n in range(1, 9)
            ]
            await asyncio.sleep(0.1)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.sleep(0)
        await tasks[0]
        assert [engine.state for engine in pool.engines.values()].count("loaded") == 1
        assert sum(engine.server is not None for engine in pool.engines.values()) == 1
        await hold(pool, catalog.find("m:a@0.5"), "fixed")  # and it is loaded when asked for

    running(test, tmp_path, model("m"))


@pytest.mark.lasting
def test_a_slow_load_keeps_nobody_else_from_loading(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        slow = asyncio.ensure_future(hold(pool, catalog.find("slow")))
        await asyncio.sleep(0.3)
        await asyncio.wait_for(hold(pool, catalog.find("quick")), 10)
        assert not slow.done()
        slow.cancel()

    running(test, tmp_path, model("slow", load_s=60), model("quick"))


@pytest.mark.lasting
def test_memory_is_set_apart_for_what_is_loading(model, tmp_path, monkeypatch):
    """There is room for one; whoever comes while it loads waits for it, and takes its place."""
    one, two = model("one", load_s=0.5), model("two")
    room, settings = placement.Room(toolchain(tmp_path)), Settings(parallel=2, context=64)
    need = placement.plan_engine(placement.Key("x"), one, settings, room).fit.need.total
    monkeypatch.setattr(placement, "available_nbytes", lambda: int(need * 1.5 / 0.9))

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        first = asyncio.ensure_future(hold(pool, catalog.find("one")))
        await asyncio.sleep(0.2)
        second = asyncio.ensure_future(hold(pool, catalog.find("two")))
        await asyncio.sleep(0.2)
        states = [engine.state for engine in pool.engines.values()]
        assert states == ["loading", "loading"]
        assert [engine.server is not None for engine in pool.engines.values()] == [True, False]
        await asyncio.gather(first, second)

    running(test, tmp_path, one, two)


def test_who_found_no_room_may_ask_again_at_once(model, tmp_path, monkeypatch):
    """However often: it is not the model that fails."""
    room: list[int] = []
    monkeypatch.setattr(placement, "available_nbytes", lambda: 1 << 40 if room else 0)

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        for _ in range(6):
            with pytest.raises(ApiError, match="does not fit") as caught:
                await hold(pool, catalog.find("m"))
            assert caught.value.retry_after == 1
        room.append(1)
        began = time.monotonic()
        await hold(pool, catalog.find("m"))
        assert time.monotonic() - began < 5

    running(test, tmp_path, model("m"))


@pytest.mark.parametrize("error", [MemoryError(), ValueError("strange"), OSError(24, "files")])
def test_whatever_a_start_fails_by_is_a_failure_that_is_told(error, model, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(engine_memory, "plan_engine", fail)

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        with pytest.raises(ApiError, match=type(error).__name__) as caught:
            await hold(pool, catalog.find("m"))
        assert caught.value.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert [engine.state for engine in pool.engines.values()] == ["failed"]

    running(test, tmp_path, model("m"))


@pytest.mark.lasting
def test_planning_does_not_keep_the_loop_from_others(model, tmp_path, monkeypatch):
    plan = engine_memory.plan_engine
    monkeypatch.setattr(engine_memory, "plan_engine", lambda *a: (time.sleep(0.5), plan(*a))[1])

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        loading = asyncio.ensure_future(hold(pool, catalog.find("m")))
        longest = 0.0
        while not loading.done():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
        assert longest < 0.4

    running(test, tmp_path, model("m"))


@pytest.mark.lasting
@pytest.mark.parametrize("route", ["/v1/completions", "/tokenize"])
def test_an_engine_that_goes_on_for_nobody_is_started_again(route, model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        await hold(pool, catalog.find("m"))
        await asked(gateway, route, {"prompt": "x", "content": "x"}, patience_s=0.5)
        engine = next(iter(pool.engines.values()))
        first = engine.server
        assert gateway.clients.counts["127.0.0.1"] == 1  # it counts until the engine lets go
        await eventually(lambda: engine.server is not first)
        assert first is not None
        assert first.process is None
        await hold(pool, catalog.find("m"))
        assert engine.restarts == 1
        assert "0.5 s after its client left" in (tmp_path / "told").read_text()
        assert not gateway.clients.counts

    running(test, tmp_path, model("m", stubborn=True), release_s=0.5)


@pytest.mark.lasting
def test_an_engine_that_is_deaf_is_started_again(model, tmp_path):
    deaf = tmp_path / "deaf"

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        async with pool.using(catalog.find("m")) as engine:
            first = engine.server
            deaf.touch()
            await eventually(lambda: engine.server is not first)
            deaf.unlink()
            await eventually(lambda: engine.is_loaded)

    running(test, tmp_path, model("m", deaf=str(deaf)), health_s=0.4)


@pytest.mark.lasting
def test_one_client_has_so_many_requests_whatever_models_they_are_for(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        asking = [
            asyncio.ensure_future(
                asked(gateway, "/v1/completions", {"model": name, "prompt": "x"}, patience_s=1)
            )
            for name in ("one", "two")
        ]
        await asyncio.sleep(0)
        status, told = await asked(gateway, "/v1/completions", {"model": "three", "prompt": "x"})
        assert status == 429
        assert "2 requests" in told["error"]["message"]
        with suppress(ApiError):
            await asyncio.gather(*asking)

    models = [model(name, stubborn=True) for name in ("one", "two", "three")]
    running(test, tmp_path, *models, max_per_client=2, release_s=0.1)


@pytest.mark.lasting
def test_an_adapter_that_breaks_while_it_is_served_is_out_and_nothing_else(model, tmp_path):
    """What is replaced by another that fits is taken, and both are told."""
    log, told = tmp_path / "asked", tmp_path / "told"
    base = model("m", asked=str(log))
    files = [write_tiny_lora(tmp_path / f"{name}.lora.gguf") for name in ("x", "y", "z")]
    adapters = [Adapter(path.name[0], path, 1.0) for path in files]
    base = replace(base, adapters=tuple(adapters), own=(None,) * len(adapters))

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        files[0].write_bytes(b"GGUF and no more of it that could be read")
        write_tiny_lora(files[1], kind="model")
        files[2].write_bytes(files[2].read_bytes() + b"\0" * 64)

        async def answer(name: str, route: str = "/v1/completions") -> Any:
            return (await asked(gateway, route, {"model": name, "prompt": "x"}))[0]

        assert [await answer(name) for name in ("m", "m:x", "m:y", "m:z")] == [200, 503, 503, 200]
        _, body = await asked(gateway, "/v1/completions", {"model": "m:x", "prompt": "x"})
        assert "the adapter 'x' cannot be used: 'x' is not a whole GGUF" in body["error"]["message"]
        assert str(tmp_path) not in body["error"]["message"]
        with pytest.raises(ApiError, match="'y' cannot be used"):
            await hold(pool, catalog.find("m:y"), "fixed")
        await hold(pool, catalog.find("m:z"), "fixed")

        write_tiny_lora(files[0])
        for engine in pool.engines.values():
            await pool.stop(engine)
        assert [await answer(name) for name in ("m", "m:x", "m:y")] == [200, 200, 503]

    running(test, tmp_path, base)
    loras = [json.loads(line)["lora"] for line in log.read_text().splitlines()]
    assert loras[:2] == [[{"id": 0, "scale": 0.0}], [{"id": 0, "scale": 1.0}]]
    assert [one["scale"] for one in loras[-1]] == [1.0, 0.0]
    assert told.read_text().count("is left out:") == 2
    assert "'z' has changed on disk" in told.read_text()
    assert "'x' has changed on disk" in told.read_text()
