"""Engines that have no room, and gateways that share a store: each is answered all the same."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling import placement
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings
from tests.runtime.gateway.conftest import Served, chat, serving, until
from tests.support.fake_engine import toolchain
from tests.support.fake_pool import hold, running

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="no other process has its limits set")


@pytest.mark.lasting
def test_five_models_that_share_the_room_of_two_are_all_answered(model, tmp_path, monkeypatch):
    """Whoever finds none waits for those that load and takes the place of those that are idle."""
    models = [model(f"m{number}", load_s=0.05) for number in range(5)]
    settings, room = Settings(parallel=2, context=64), placement.Room(toolchain(tmp_path))
    need = placement.plan_engine(placement.Key("x"), models[0], settings, room).fit.need.total
    most, answered = [0], []

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        def loaded() -> int:
            return sum(engine.server is not None for engine in pool.engines.values())

        def free() -> int:
            up = sum(engine.is_loaded for engine in pool.engines.values())
            return int(need * (2.5 - up) / 0.9)

        monkeypatch.setattr(placement, "available_nbytes", free)
        dice = random.Random(3)

        async def client(number: int) -> None:
            for _ in range(6):
                await hold(pool, catalog.find(f"m{(number + dice.randrange(5)) % 5}"))
                answered.append(number)
                most[0] = max(most[0], loaded())

        await asyncio.gather(*(client(number) for number in range(2)))
        assert loaded() <= 2

    running(test, tmp_path, *models)
    assert len(answered) == 12
    assert most[0] <= 2


def restarts(served: Served) -> float:
    return served.metric("decant_child_restarts_total")


@pytest.mark.llamacpp
@pytest.mark.trained
@linux
@pytest.mark.parametrize("how", ["killed", "limited"])
def test_an_engine_without_memory_is_told_of_and_started_again_beside_another(
    how, voices, pirate, tmp_path
):
    """killed: as the kernel does where memory is out; limited: as where `ulimit -v` is reached."""
    with serving(tmp_path, *voices, pirate, "--parallel", "2") as served:
        base, other = served.says("base", "tell me"), served.says("pirate", "tell me")
        before = served.children()
        victim = engine_of(served, "base")

        def long(_: int) -> tuple[int, object]:
            asked = chat("base", "tell me a story " * 40, max_tokens=400, ignore_eos=True)
            return served.ask("/v1/chat/completions", asked)

        with ThreadPoolExecutor(4) as threads:
            os.kill(victim, signal.SIGSTOP)  # else it may have answered before it is looked at
            asked = threads.map(long, range(2))
            assert until(lambda: served.metric("decant_slots_used") >= 1)
            if how == "killed":
                os.kill(victim, signal.SIGKILL)
            else:
                resource.prlimit(victim, resource.RLIMIT_AS, (MIB, MIB))
                os.kill(victim, signal.SIGCONT)
                threads.map(long, range(2))
            assert served.says("pirate", "tell me") == other
            answers = list(asked)

        for status, body in answers:
            assert status in ((503,) if how == "killed" else (200, 500, 503)), body
            if status == 503:
                assert "the engine" in json.dumps(body) or "ended" in json.dumps(body)
        if how == "killed":
            assert until(lambda: restarts(served) == 1)
        assert until(lambda: says_again(served, base))
        assert len(served.children()) <= len(before)


def says_again(served: Served, expected: str) -> bool:
    status, body = served.ask("/v1/chat/completions", chat("base", "tell me"))
    return status == 200 and body["choices"][0]["message"]["content"] == expected


def engine_of(served: Served, name: str) -> int:
    """The process that answers for a model."""
    for pid in served.children():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"-a" in words and words[words.index(b"-a") + 1] == name.encode():
            return pid
    raise AssertionError(name)


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.trained
def test_two_gateways_share_a_store_and_the_cache_of_adapters(demo_base, demo_models, tmp_path):
    """They convert the same adapter at once; the end of one leaves the other's engine alone."""
    env = {"DECANT_STORE": str(tmp_path / "store")}
    argv = (demo_base, "--adapter", f"pirate={demo_models.adapter}")
    both = [serving(tmp_path, *argv, env=env) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads, ExitStack() as stack:
        started = [threads.submit(one.__enter__) for one in both]
        for one, start in zip(both, started, strict=True):
            start.result(120)
            stack.push(one)
        one, two = (start.result() for start in started)
        said = [served.says("base:pirate", "tell me") for served in (one, two)]
        assert said[0] == said[1] != two.says("base", "tell me")

        one.process.kill()
        one.process.wait()
        for _ in range(5):
            assert two.says("base:pirate", "tell me") == said[0]
        assert restarts(two) == 0
