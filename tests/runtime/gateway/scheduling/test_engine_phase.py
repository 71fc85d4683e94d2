"""The phases of an engine, and how long it waits after failures."""

from __future__ import annotations

import asyncio

import pytest

from exporter.core.errors import EngineDiedError, SpaceError
from runtime.engine.opened_model import open_model
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.engine_phase import Failed, Loading, Unloaded
from runtime.gateway.scheduling.placement import Key
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.settings import Settings
from tests.support.fake_engine import behave, toolchain
from tests.support.raw import write_tiny_gguf

DIED = EngineDiedError("it died", hint="")


@pytest.fixture
def engine():
    return EngineEntry(Key("some"), None, RequestQueue(1, Settings(), lambda: 0.0))


def test_each_failure_in_a_row_has_the_next_start_wait_for_longer(engine):
    waits = [engine.fail(DIED, 100.0).wait_s(100.0) for _ in range(8)]

    assert waits == pytest.approx([0.2, 1, 2, 5, 10, 30, 30, 30])


def test_a_wait_ends(engine):
    failed = engine.fail(DIED, 100.0)

    assert failed.wait_s(100.1) == pytest.approx(0.1)
    assert failed.wait_s(101.0) == 0


def test_memory_that_was_short_is_no_failure_of_the_engine(engine):
    engine.fail(DIED, 100.0)

    assert engine.fail(SpaceError("no room", hint=""), 100.0).wait_s(100.0) == 0
    assert engine.crashes == 0


@pytest.mark.parametrize(
    ("phase", "name", "progress"),
    [(Unloaded(), "unloaded", 0), (Loading(progress=0.5), "loading", 0.5),
     (Failed(DIED, 0), "failed", 0)],
)  # fmt: skip
def test_an_engine_without_an_answering_process_has_no_address(engine, phase, name, progress):
    engine.phase = phase

    assert (engine.state, engine.progress) == (name, progress)
    assert (engine.server, engine.address, engine.is_loaded) == (None, None, False)


def test_memory_is_reserved_from_the_plan_on_until_the_engine_is_up(engine):
    engine.nbytes = 7
    engine.phase = Loading()
    assert engine.reserved == 0
    engine.phase = Loading(server=object())
    assert engine.reserved == 7
    engine.phase = Failed(DIED, 0)
    assert engine.reserved == 0


@pytest.mark.lasting
def test_a_death_that_many_notice_at_once_is_one(tmp_path):
    model = open_model(behave(write_tiny_gguf(tmp_path / "m.gguf")))
    catalog = Catalog([model])

    async def run() -> None:
        pool = EnginePool(Settings(parallel=2, context=64), toolchain(tmp_path))
        async with pool.using(catalog.find("m")) as engine:
            first = engine.server
            first.process.kill()
            await asyncio.gather(*(pool.wait_for_exit(engine) for _ in range(5)))
            assert (engine.state, engine.restarts, engine.crashes) == ("failed", 1, 1)
            await pool.restart(engine)
            assert engine.is_loaded
            assert engine.server is not first
            assert (engine.restarts, engine.crashes) == (1, 1)
        await pool.close()

    asyncio.run(run())
