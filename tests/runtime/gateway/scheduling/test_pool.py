"""Children that come and go: memory, crashes, and heads of requests that do not come."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from exporter.core.events import Event
from exporter.core.paths import size_text
from runtime.engine.adapters import Adapter
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.opened_model import open_model
from runtime.gateway.api_errors import ApiError
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.engine_phase import Loading
from runtime.gateway.scheduling.placement import Key, Room, plan_engine
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.server import Protocol, listening, serve
from runtime.gateway.settings import Settings

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.asynccontextmanager
async def serving_here(model, settings, toolchain) -> AsyncIterator[int]:
    """A gateway over a model, in this process: its port."""
    gateway = Gateway(settings, Catalog([open_model(model)]), EnginePool(settings, toolchain))
    with listening("127.0.0.1", 0) as listener:
        work = asyncio.ensure_future(serve(gateway, build_app(gateway), listener, None))
        await asyncio.sleep(0.2)
        yield listener.getsockname()[1]
        work.cancel()
        await asyncio.wait({work})


def test_the_longest_unused_makes_room_and_never_a_busy_one(
    pirate, demo_base, toolchain, tmp_path, monkeypatch
):
    """Memory for two of three models."""
    third = tmp_path / "third.gguf"
    third.symlink_to(pirate)
    models = [open_model(path) for path in (pirate, demo_base, third)]
    catalog = Catalog(models)
    settings = Settings(parallel=1, context=256)
    need = plan_engine(Key("x"), models[0], settings, Room(toolchain)).fit.need.total
    told: list[Event] = []
    pool = EnginePool(settings, toolchain, told.append)
    monkeypatch.setattr(
        "runtime.gateway.scheduling.placement.available_nbytes",
        lambda: int(need * (2.4 - sum(c.is_loaded for c in pool.engines.values())) / 0.9),
    )

    async def run() -> None:
        first, second, other = (catalog.find(name) for name in ("pirate", "base", "third"))
        async with pool.using(first):
            async with pool.using(second):
                with pytest.raises(ApiError) as caught:
                    async with pool.using(other):
                        pass
                assert caught.value.status == 503
                assert "does not fit" in caught.value.message
        async with pool.using(first):
            async with pool.using(other):
                states = {key.base: engine.state for key, engine in pool.engines.items()}
                assert states == {"pirate": "loaded", "base": "unloaded", "third": "loaded"}
        await pool.close()

    asyncio.run(run())
    assert any("unloading base: its memory is needed" in str(event) for event in told)
    assert size_text(need)


def test_nobody_waits_long_for_what_dies_again_and_again(pirate, toolchain):
    """Neither those who wait when it dies once more, nor those who come then."""
    settings = Settings(parallel=1, context=256)
    catalog = Catalog([open_model(pirate)])
    pool = EnginePool(settings, toolchain)
    resolved = next(iter(catalog))

    async def run() -> None:
        async with pool.using(resolved) as engine:
            watching = set(pool.tasks)
            engine.crashes = 4  # the next start is 10 s away
            await engine.queue.admit(())
            waiting = asyncio.ensure_future(engine.queue.admit(()))
            await asyncio.sleep(0)
            began = time.monotonic()
            engine.server.process.kill()
            with pytest.raises(ApiError) as told:
                await asyncio.wait_for(waiting, 5)
            refusals.append(told.value)
            await asyncio.wait(watching)  # it ends with the next start begun
            with pytest.raises(ApiError) as told:
                await pool.ensure_loaded(engine)
            refusals.append(told.value)
            took.append(time.monotonic() - began)
        await pool.close()

    refusals: list[ApiError] = []
    took: list[float] = []
    asyncio.run(run())
    assert [error.status for error in refusals] == [503, 503]
    assert all(9 <= error.retry_after <= 11 for error in refusals)
    assert took[0] < 5


def test_slots_are_as_many_as_memory_allows(pirate, toolchain, monkeypatch):
    model = open_model(pirate)
    one = plan_engine(Key("x"), model, Settings(parallel=1), Room(toolchain)).fit.need.total
    two = plan_engine(Key("x"), model, Settings(parallel=2), Room(toolchain)).fit.need.total
    monkeypatch.setattr(
        "runtime.gateway.scheduling.placement.available_nbytes",
        lambda: int((one + two) / 2 / 0.9) + 1,
    )

    assert plan_engine(Key("x"), model, Settings(), Room(toolchain)).spec.parallel == 1
    monkeypatch.setattr(
        "runtime.gateway.scheduling.placement.available_nbytes", lambda: int(two / 0.9) + 100
    )
    assert plan_engine(Key("x"), model, Settings(), Room(toolchain)).spec.parallel == 2


def test_heads_that_do_not_come_are_not_waited_for(pirate, toolchain):
    """Neither at the start of a connection, nor after a first request on it."""
    ended: dict[str, float] = {}

    def stall(port: int, name: str, first: bytes, text: bytes) -> None:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
            connection.settimeout(10)
            connection.sendall(first)
            if first:
                connection.recv(1 << 16)
            began = time.monotonic()
            connection.sendall(text)
            while connection.recv(1 << 16):
                pass
            ended[name] = time.monotonic() - began

    texts = {"nothing": (b"", b""), "half": (b"", LIVEZ[:20]), "second": (LIVEZ, LIVEZ[:20])}

    async def run() -> None:
        async with serving_here(pirate, Settings(head_s=0.3), toolchain) as port:
            stalled = [asyncio.to_thread(stall, port, name, *text) for name, text in texts.items()]
            await asyncio.gather(*stalled)

    asyncio.run(run())
    assert set(ended) == set(texts)
    assert max(ended.values()) < 5


def test_a_connection_that_was_reset_leaves_nothing_in_memory(pirate, toolchain):
    """Its client asked, and left without having read the answer."""

    def reset(port: int) -> None:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(LIVEZ)
            assert select.select([connection], [], [], 5)[0]

    def connections() -> int:
        gc.collect()
        return sum(issubclass(type(one), Protocol) for one in gc.get_objects())

    async def run() -> None:
        async with serving_here(pirate, Settings(), toolchain) as port:
            for _ in range(20):
                await asyncio.to_thread(reset, port)
            await asyncio.sleep(0.2)
            left.append(connections())

    left: list[int] = []
    asyncio.run(run())
    assert left == [0]


def test_scales_that_clients_choose_leave_no_end_of_children(pirate, toolchain):
    """Whether they answer or embed, and whether they are loaded still or not."""
    settings = Settings()
    pool = EnginePool(settings, toolchain)
    adapters = (Adapter("some", pirate, 0.8), Adapter("other", pirate, 1.0))
    model = replace(open_model(pirate), adapters=adapters)
    for number in range(9):
        key = Key("base", ("fixed", "embed")[number % 2], (0.0, (number + 1) / 10))
        pool.engines[key] = EngineEntry(
            key, model, RequestQueue(1, settings, pool.clock), last_used=number
        )
    listed = [
        Key("base"),
        *(Key("base", "fixed", scales) for scales in [(0, 0), (0.8, 0), (0, 1)]),
    ]
    for key in listed:
        pool.engines[key] = EngineEntry(
            key, model, RequestQueue(1, settings, pool.clock), last_used=-1
        )
    new = EngineEntry(
        Key("base", "fixed", (0.0, 9.5)), model, RequestQueue(1, settings, pool.clock)
    )
    asyncio.run(pool.limit_chosen_scales(new))

    kept = [engine.last_used for engine in pool.engines.values()]
    assert kept == [6, 7, 8, *[-1 for _ in listed]]


def test_engines_for_scales_that_clients_choose_are_not_started_one_after_the_other(
    pirate, toolchain
):
    """A start takes the processor from everybody else."""
    now = 100.0
    settings = Settings(chosen_s=20)
    pool = EnginePool(settings, toolchain, clock=lambda: now)
    model = replace(open_model(pirate), adapters=(Adapter("some", pirate, 0.8),))

    def chosen(scale: float, began: float) -> EngineEntry:
        key = Key("base", "fixed", (scale,))
        return EngineEntry(
            key, model, RequestQueue(1, settings, pool.clock), began=began, last_used=began
        )

    for number in range(settings.limits.scales):
        engine = chosen((number + 1) / 10, 90.0 + number)
        engine.phase = Loading(Server(ServerSpec(pirate, 256, 1, 1), toolchain))
        pool.engines[engine.key] = engine
    new = chosen(9.5, 0)

    wait_s = asyncio.run(pool.limit_chosen_scales(new))
    assert len(pool.engines) == settings.limits.scales
    assert wait_s == pytest.approx(10, abs=0.5)

    now += wait_s
    assert asyncio.run(pool.limit_chosen_scales(new)) == 0
    assert [engine.began for engine in pool.engines.values()] == [91, 92, 93]
