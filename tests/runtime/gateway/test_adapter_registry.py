"""Adapters that come and go while engines answer; the engines are fakes."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from typing import Any

import pytest

from runtime.gateway.scheduling import placement
from runtime.gateway.scheduling.pool import EnginePool
from tests.support.changing_server import Server
from tests.support.fake_engine import toolchain
from tests.support.fake_pool import asked, eventually
from tests.support.tiny_lora import write_tiny_lora


def processes(pool: EnginePool) -> int:
    return sum(engine.server is not None for engine in pool.roster)


@pytest.mark.lasting
def test_vllms_bodies_add_an_adapter_and_remove_it(serve):
    async def test(server: Server) -> None:
        assert await server.answer("m") == ""
        status, told = await server.load("a")
        assert (status, told) == (200, b"Success: LoRA adapter 'a' added successfully.")
        assert await server.ids() == ["m", "m:a"]
        assert [await server.answer(one) for one in ("m:a", "a", "a@0.5", "m")] == [
            "a",
            "a",
            "a",
            "",
        ]

        assert server.gateway.metrics.text().count(b'model="m:a"')
        status, told = await server.unload("a")
        assert (status, told) == (200, b"Success: LoRA adapter 'a' removed successfully.")
        assert await server.ids() == ["m"]
        assert [await server.answer(one) for one in ("m:a", "a", "m")] == [404, 404, ""]
        assert not server.gateway.metrics.text().count(b'model="m:a"')

    serve(test)


@pytest.mark.lasting
def test_an_adapter_may_be_named_as_lists_name_it(serve):
    async def test(server: Server) -> None:
        assert (await server.load("m:a", server.folder / "a.gguf"))[0] == 200
        assert await server.ids() == ["m", "m:a"]
        assert (await server.load("n:b", server.folder / "b.gguf"))[0] == 400
        assert (await server.unload("m:b"))[0] == 404
        assert (await server.unload("m:a"))[0] == 200
        assert await server.ids() == ["m"]

    serve(test)


@pytest.mark.lasting
def test_every_list_shows_the_change_at_once(serve):
    async def test(server: Server) -> None:
        async def shown() -> list[bool]:
            gateway = server.gateway
            found = [
                (await asked(gateway, path, None))[1]
                for path in ("/v1/models", "/api/tags", "/lora-adapters")
            ]
            _, one = await asked(gateway, "/v1/models/m:a", None)
            _, metrics = await asked(gateway, "/metrics", None)
            told = b'decant_adapters{model="m"} 1.0' in metrics
            return [*('"m:a"' in json.dumps(each) for each in found), "id" in one, told]

        assert await shown() == [False] * 5
        await server.load("a")
        assert await shown() == [True] * 5
        await server.unload("a")
        assert await shown() == [False] * 5

    serve(test)


@pytest.mark.lasting
def test_an_adapter_that_is_not_asked_for_restarts_nothing(serve):
    async def test(server: Server) -> None:
        await server.answer("m")
        (engine,) = server.pool.engines.values()
        for name in "abc":
            assert (await server.load(name))[0] == 200
        assert await server.answer("m") == ""
        assert list(server.pool.engines.values()) == [engine]
        assert not server.pool.roster.beside
        assert await server.answer("m:c") == "c"
        assert [one.is_loaded for one in server.pool.engines.values()] == [True]
        await eventually(lambda: processes(server.pool) == 1)
        (engine,) = server.pool.engines.values()
        assert len(engine.model.adapters) == 3  # one restart for all of them

    serve(test)


@pytest.mark.lasting
def test_an_engine_that_is_not_loaded_starts_once_with_what_is_served_then(serve, tmp_path):
    def starts() -> int:
        return (tmp_path / "told").read_text().count("Step(message='loading m')")

    async def test(server: Server) -> None:
        async def stop() -> None:
            for engine in server.pool.engines.values():
                await server.pool.stop(engine)

        assert await server.answer("m") == ""
        await stop()
        await server.load("a")
        assert (await server.answer("m:a"), starts()) == ("a", 2)
        await stop()
        await server.unload("a")
        assert (await server.answer("m"), starts()) == ("", 3)
        assert not server.pool.roster.beside
        assert not server.pool.roster.holds_removed(next(iter(server.pool.engines.values())))

    serve(test)


@pytest.mark.lasting
def test_what_runs_finishes_and_what_is_new_waits_for_no_one(serve, tmp_path):
    """The old engine answers beside the new one, and ends after its last request."""
    held = tmp_path / "held"

    async def test(server: Server) -> None:
        await server.load("a")
        assert await server.answer("m:a") == "a"
        (old,) = server.pool.engines.values()
        held.touch()
        slow = asyncio.ensure_future(server.answer("m:a"))
        await eventually(lambda: old.queue.used)
        assert (await server.unload("a"))[0] == 200
        await server.load("b")
        new = asyncio.ensure_future(server.answer("m:b"))
        engines = server.pool.engines
        await eventually(lambda: any(one.queue.used for one in engines.values() if one is not old))
        assert old.is_loaded
        await server.pool.replace(old)  # it has been replaced already
        # an engine that the unload began, without either adapter, may be ending
        await eventually(lambda: server.pool.roster.beside == {old})
        held.unlink()
        assert [await slow, await new] == ["a", "b"]
        await eventually(lambda: processes(server.pool) == 1)
        await eventually(lambda: not server.pool.roster.beside)

    serve(test, how={"holds": str(held)})


@pytest.mark.lasting
def test_a_request_in_portions_finishes_after_its_adapter_went(serve, tmp_path):
    held = tmp_path / "held"

    async def test(server: Server) -> None:
        await server.load("a")
        body = {"model": "a", "prompt": ["x"] * 8}
        held.touch()
        whole = asyncio.ensure_future(asked(server.gateway, "/v1/completions", body))
        await eventually(lambda: any(one.queue.used for one in server.pool.engines.values()))
        assert (await server.unload("a"))[0] == 200
        held.unlink()
        status, told = await whole
        assert (status, [one["text"] for one in told["choices"]]) == (200, ["a"] * 8)
        assert await server.answer("m:a") == 404
        await eventually(lambda: processes(server.pool) == 1)

    serve(test, how={"holds": str(held)})


@pytest.mark.lasting
def test_a_request_that_was_accepted_before_its_adapter_went_is_answered(serve):
    """Even where no engine has the adapter any more; that engine ends with it."""

    async def test(server: Server) -> None:
        await server.load("a")
        accepted = server.gateway.catalog.find("m:a")
        await server.unload("a")
        async with server.pool.using(accepted) as engine:
            assert [path.stem for path in engine.server.spec.adapters] == ["a"]
            assert engine.is_retired
            assert not server.pool.engines
            async with server.pool.using(accepted) as another:
                assert another is engine
        await eventually(lambda: not server.pool.roster.beside)
        assert processes(server.pool) == 0

    serve(test)


@pytest.mark.lasting
def test_a_removed_adapter_is_in_no_engine_any_more(serve, tmp_path):
    """Neither in the shared one, nor in one whose scales are fixed; and nothing is asked for."""

    async def test(server: Server) -> None:
        await server.load("a")
        await server.load("b")
        resolved = [server.gateway.catalog.find(name) for name in ("m:a", "m:b")]
        assert await server.answer("m:a") == "a"
        for one in resolved:
            async with server.pool.using(one, "fixed") as engine:
                assert len(engine.model.adapters) == 1
        assert processes(server.pool) == 3
        await server.unload("a")

        def held() -> list[str]:
            engines = [one for one in server.pool.roster if one.server is not None]
            return sorted(path.stem for one in engines for path in one.server.spec.adapters)

        await eventually(lambda: held() == ["b", "b"])
        assert len(server.pool.engines) == 2
        assert await server.answer("m:b") == "b"

    serve(test)


@pytest.mark.lasting
def test_a_name_that_comes_back_is_the_new_file(serve):
    async def test(server: Server) -> None:
        await server.load("x", server.folder / "a.gguf")
        assert await server.answer("m:x") == "a"
        async with server.pool.using(server.gateway.catalog.find("m:x"), "fixed"):
            pass
        await server.unload("x")
        await server.load("x", server.folder / "b.gguf")
        assert await server.answer("m:x") == "b"
        status, told = await server.load("x", server.folder / "c.gguf")
        assert status == 400
        assert "has already been loaded" in told["error"]["message"]
        assert await server.answer("m:x") == "b"
        status, _ = await server.load("x", server.folder / "c.gguf", load_inplace=True)
        assert (status, await server.answer("m:x")) == (200, "c")
        assert await server.ids() == ["m", "m:x"]
        async with server.pool.using(server.gateway.catalog.find("m:x"), "fixed") as engine:
            assert [path.stem for path in engine.server.spec.adapters] == ["c"]

    serve(test)


@pytest.mark.lasting
def test_a_file_that_changed_in_place_is_loaded_again(serve):
    async def test(server: Server) -> None:
        await server.load("a")
        assert await server.answer("m:a") == "a"
        (old,) = server.pool.engines.values()
        write_tiny_lora(server.folder / "a.gguf", 7)
        assert (await server.load("a", load_inplace=True))[0] == 200
        assert await server.answer("m:a") == "a"
        assert list(server.pool.engines.values()) != [old]

    serve(test)


@pytest.mark.lasting
def test_bases_are_told_apart_by_their_name(serve):
    """An adapter that fits two needs one named, as does the removal of a name that both have."""

    async def test(server: Server) -> None:
        status, told = await server.load("a")
        assert (status, "'m' and 'n'" in told["error"]["message"]) == (400, True)
        assert (await server.load("a", model="m"))[0] == 200
        assert (await server.load("a", base_model_name="n"))[0] == 200
        assert await server.ids() == ["m", "m:a", "n", "n:a"]
        assert [await server.answer(one) for one in ("m:a", "n:a", "a")] == ["a", "a", 404]
        status, told = await server.unload("a")
        assert (status, "name one of them" in told["error"]["message"]) == (400, True)
        assert (await server.unload("a", model="n"))[0] == 200
        assert await server.ids() == ["m", "m:a", "n"]
        assert (await server.load("b", model="none"))[0] == 404
        assert (await server.load("b", model="m:a"))[0] == 400

    serve(test, "m", "n")


@pytest.mark.lasting
def test_an_engine_that_loads_while_its_adapter_goes_loads_without_it(serve):
    """Its file is removed with it, so that the start that has begun fails."""

    async def test(server: Server) -> None:
        await server.load("a")
        waiting = asyncio.ensure_future(server.answer("m"))
        await eventually(lambda: processes(server.pool) == 1)
        await server.unload("a")
        (server.folder / "a.gguf").unlink()
        assert await waiting == ""
        await eventually(lambda: processes(server.pool) == 1)
        (engine,) = server.pool.engines.values()
        await eventually(lambda: engine.phase.name == "loaded" or engine.is_retired)
        await eventually(
            lambda: [len(one.model.adapters) for one in server.pool.engines.values()] == [0]
        )

    serve(test, how={"load_s": 0.3})


@pytest.mark.lasting
def test_clients_may_mix_adapters_by_their_numbers_in_the_list(serve):
    """The numbers are those of the list, whatever the engine's are."""

    async def test(server: Server) -> None:
        await server.load("a")
        assert await server.answer("m:a") == "a"
        await server.load("b")
        await server.load("c")
        _, told = await asked(server.gateway, "/lora-adapters", None)
        numbers = {one["name"]: one["id"] for one in told}

        async def mixed(**scales: float) -> str:
            lora = [{"id": numbers[name], "scale": scale} for name, scale in scales.items()]
            body = {"model": "m", "prompt": "x", "lora": lora}
            status, told = await asked(server.gateway, "/v1/completions", body)
            assert status == 200, told
            return told["choices"][0]["text"]

        assert await mixed(a=1) == "a"
        assert await mixed(a=0.5, c=1) == "a c"
        await server.unload("a")
        _, told = await asked(server.gateway, "/lora-adapters", None)
        numbers = {one["name"]: one["id"] for one in told}
        assert await mixed(b=1) == "b"
        assert await mixed(b=1, c=1) == "b c"

    serve(test, allow_fields=frozenset({"lora"}))


@pytest.mark.lasting
def test_without_memory_for_two_the_old_engine_ends_first(serve, monkeypatch):
    most: list[int] = []

    async def test(server: Server) -> None:
        settings, room = server.pool.settings, placement.Room(toolchain(server.folder.parent))
        model = next(iter(server.gateway.catalog)).model
        need = placement.plan_engine(placement.Key("x"), model, settings, room).fit.need.total
        monkeypatch.setattr(
            placement,
            "available_nbytes",
            lambda: int(need * (1.5 - bool(sum(map(held, server.pool.roster)))) / 0.9),
        )
        assert await server.answer("m") == ""
        slow = [asyncio.ensure_future(server.answer("m")) for _ in range(4)]
        await server.load("a")
        new = asyncio.ensure_future(server.answer("m:a"))
        while not new.done():
            most.append(processes(server.pool))
            await asyncio.sleep(0.01)
        assert [await one for one in slow] == [""] * 4
        assert await new == "a"

    def held(engine: Any) -> bool:
        return engine.is_loaded

    serve(test, how={"takes_s": 0.3})
    assert max(most) == 1


@pytest.mark.lasting
def test_clients_that_ask_while_adapters_come_and_go_get_the_right_one(serve, tmp_path):
    """Eight clients; each answer names the adapter that was asked for, or its name was gone."""
    wrong: list[object] = []
    right = 0

    async def test(server: Server) -> None:
        nonlocal right
        for name in "uvw":
            shutil.copy(server.folder / "a.gguf", server.folder / f"{name}.gguf")
        for name in "ab":
            await server.load(name)
        is_over = False

        async def client(seed: int) -> None:
            nonlocal right
            dice = random.Random(seed)
            while not is_over:
                name = dice.choice(("m", "m:a", "m:b", "m:u", "m:v", "m:w"))
                found = await server.answer(name)
                stem = name.partition(":")[2]
                if found == stem:
                    right += 1
                elif not (found == 404 and stem in ("u", "v", "w")):
                    wrong.append((name, found))

        clients = [asyncio.ensure_future(client(seed)) for seed in range(8)]
        dice = random.Random(3)
        while right < 60 and not wrong:
            name = dice.choice("uvw")
            if (await server.load(name))[0] == 400:
                await server.unload(name)
            await asyncio.sleep(0.03)
        is_over = True
        await asyncio.gather(*clients)
        await eventually(lambda: processes(server.pool) == 1)
        await eventually(lambda: not server.pool.roster.leaving())

    serve(test)
    assert wrong == []
