"""A watched folder: what appears is served once it is complete, and what goes is not."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.gateway import adapter_folder, adapter_registry
from runtime.gateway.adapter_folder import RETRY_S, SETTLE_S, AdapterFolder, adapters_in, begin
from runtime.gateway.request_limits import Limits
from tests.support.changing_server import Server
from tests.support.fake_pool import eventually
from tests.support.raw import write_adapter, write_tiny_gguf
from tests.support.tiny_lora import write_tiny_lora


@dataclass
class Watched:
    """A server, the folder that it watches, and a clock that the test moves."""

    server: Server
    watch: AdapterFolder
    now: float = 0

    @property
    def folder(self) -> Path:
        return self.watch.folder

    async def look(self, *, later: float = SETTLE_S) -> list[str]:
        """Look once more after this time: the adapters that are served."""
        self.now += later
        await self.watch.look()
        return [id_.partition(":")[2] for id_ in await self.server.ids() if ":" in id_]

    async def twice(self) -> list[str]:
        await self.look()
        return await self.look()


@pytest.fixture
def watching(serve, tmp_path) -> Callable[..., str]:
    """Run a test over an empty folder that is watched; what was reported."""
    folder = tmp_path / "watched"
    folder.mkdir()

    def run(test: Callable[[Watched], Awaitable[None]], *names: str, **settings: object) -> str:
        async def begin_test(server: Server) -> None:
            found = Watched(server, AdapterFolder(folder, server.gateway.adapters, lambda: 0.0))
            found.watch.clock = lambda: found.now
            await test(found)

        serve(begin_test, *names, **settings)
        return (tmp_path / "told").read_text()

    return run


@pytest.mark.lasting
def test_what_appears_is_served_and_what_goes_is_not(watching):
    async def test(watched: Watched) -> None:
        assert await watched.twice() == []
        write_tiny_lora(watched.folder / "a.gguf")
        write_tiny_lora(watched.folder / "b.lora.gguf", 1)
        assert await watched.look() == []
        assert await watched.look() == ["a", "b"]
        assert await watched.server.answer("m:a") == "a"
        (watched.folder / "a.gguf").unlink()
        assert await watched.look() == ["b"]
        assert [await watched.server.answer(one) for one in ("m:a", "m:b")] == [404, "b.lora"]
        (watched.folder / "b.lora.gguf").rename(watched.folder / "c.gguf")
        assert await watched.look() == []
        assert await watched.look() == ["c"]

    watching(test)


@pytest.mark.lasting
def test_what_is_half_written_is_not_taken(watching, tmp_path):
    """Neither while it grows, nor where its copying has stopped; it is when it is whole."""
    whole = write_tiny_lora(tmp_path / "whole.gguf").read_bytes()

    async def test(watched: Watched) -> None:
        path = watched.folder / "a.gguf"
        for nbytes in range(100, len(whole), len(whole) // 4):
            path.write_bytes(whole[:nbytes])
            assert await watched.look() == []
        assert await watched.twice() == []
        assert await watched.look() == []
        path.write_bytes(whole)
        assert await watched.look(later=0.1) == []
        assert await watched.look(later=SETTLE_S / 2) == []
        assert await watched.look(later=SETTLE_S / 2) == ["a"]

    told = watching(test)
    assert told.count("a.gguf` is not served") == 1


@pytest.mark.lasting
def test_what_is_no_adapter_is_left_alone_or_reported_once(watching):
    async def test(watched: Watched) -> None:
        folder = watched.folder
        (folder / ".hidden.gguf").write_text("x")
        (folder / "notes.txt").write_text("x")
        (folder / "empty").mkdir()
        write_tiny_gguf(folder / "model.gguf")
        write_tiny_lora(folder / "other.gguf", architecture="gemma")
        write_tiny_lora(folder / "bad name.gguf")
        write_tiny_lora(folder / "base.gguf")
        write_tiny_lora(folder / "good.gguf")
        for _ in range(3):
            assert await watched.twice() in ([], ["good"])
        assert await watched.server.answer("m:good") == "good"

    told = watching(test)
    for name in ("model.gguf", "other.gguf", "bad name.gguf", "base.gguf"):
        assert told.count(f"{name}` is not served") == 1, name
    assert told.count("is not served") == 4


@pytest.mark.lasting
def test_a_file_that_is_replaced_is_served_as_it_is_now(watching):
    async def test(watched: Watched) -> None:
        path = write_tiny_lora(watched.folder / "a.gguf")
        assert await watched.twice() == ["a"]
        first = watched.server.gateway.catalog.find("m:a").adapter
        other = write_tiny_lora(watched.folder / ".next", 1)
        other.replace(path)
        assert await watched.look() == ["a"]
        assert watched.server.gateway.catalog.find("m:a").adapter == first
        assert await watched.look() == ["a"]
        assert watched.server.gateway.catalog.find("m:a").adapter != first

    watching(test)


@pytest.mark.lasting
def test_what_a_request_has_removed_stays_away_until_it_changes(watching):
    async def test(watched: Watched) -> None:
        path = write_tiny_lora(watched.folder / "a.gguf")
        assert await watched.twice() == ["a"]
        assert (await watched.server.unload("a"))[0] == 200
        assert await watched.twice() == []
        write_tiny_lora(path, 1)
        assert await watched.twice() == ["a"]
        await watched.server.unload("a")
        path.unlink()
        assert await watched.twice() == []
        write_tiny_lora(path, 1)
        assert await watched.twice() == ["a"]

    watching(test)


@pytest.mark.lasting
def test_a_name_that_is_taken_is_not_taken_away(watching):
    async def test(watched: Watched) -> None:
        await watched.server.load("a")
        write_tiny_lora(watched.folder / "a.gguf", 5)
        before = watched.server.gateway.catalog.find("m:a").adapter
        assert await watched.twice() == ["a"]
        assert watched.server.gateway.catalog.find("m:a").adapter == before
        (watched.folder / "a.gguf").unlink()
        assert await watched.twice() == ["a"]

    assert watching(test).count("already been loaded") == 1


@pytest.mark.lasting
def test_what_a_request_has_put_in_its_place_stays(watching):
    """Whether the folder's file goes or changes."""

    async def test(watched: Watched) -> None:
        path = write_tiny_lora(watched.folder / "a.gguf", 5)
        assert await watched.twice() == ["a"]
        await watched.server.unload("a")
        assert (await watched.server.load("a"))[0] == 200
        clients = watched.server.gateway.catalog.find("m:a").adapter
        write_tiny_lora(path, 6)
        assert await watched.twice() == ["a"]
        path.unlink()
        assert await watched.twice() == ["a"]
        assert watched.server.gateway.catalog.find("m:a").adapter == clients

    watching(test)


@pytest.mark.lasting
def test_a_name_that_is_free_again_is_taken(watching):
    async def test(watched: Watched) -> None:
        await watched.server.load("a")
        write_tiny_lora(watched.folder / "a.gguf", 5)
        for _ in range(3):
            assert await watched.look(later=RETRY_S) == ["a"]
        await watched.server.unload("a")
        assert await watched.look(later=RETRY_S) == ["a"]

    assert watching(test).count("is not served") == 1


@pytest.mark.lasting
def test_there_are_only_so_many_in_a_folder_too(watching):
    async def test(watched: Watched) -> None:
        for number in range(3):
            write_tiny_lora(watched.folder / f"a{number}.gguf", number)
        assert await watched.twice() == ["a0", "a1"]
        (watched.folder / "a0.gguf").unlink()
        assert await watched.look(later=RETRY_S) == ["a1", "a2"]

    assert "--limit adapters=N" in watching(test, limits=Limits(adapters=2))


@pytest.mark.lasting
def test_a_folder_that_cannot_be_read_removes_nothing(watching):
    async def test(watched: Watched) -> None:
        write_tiny_lora(watched.folder / "a.gguf")
        assert await watched.twice() == ["a"]
        away = watched.folder.rename(watched.folder.with_name("away"))
        assert await watched.twice() == ["a"]
        away.rename(watched.folder)
        (watched.folder / "a.gguf").unlink()
        assert await watched.look() == []

    assert watching(test).count("cannot read") == 1


@pytest.mark.lasting
def test_what_the_server_has_no_room_for_is_tried_again_later(watching, monkeypatch):
    from exporter.core.errors import SpaceError

    convert = adapter_registry.gguf_of
    tries = []

    def full(*arguments, **more):
        tries.append(arguments)
        if len(tries) == 1:
            raise SpaceError("no space is left", hint="remove something")
        return convert(*arguments, **more)

    monkeypatch.setattr(adapter_registry, "gguf_of", full)

    async def test(watched: Watched) -> None:
        write_tiny_lora(watched.folder / "a.gguf")
        assert await watched.twice() == []
        assert await watched.look() == []
        assert len(tries) == 1
        assert await watched.look(later=RETRY_S) == ["a"]

    watching(test)


@pytest.mark.lasting
def test_a_slow_adapter_does_not_stop_the_others(watching, monkeypatch):
    convert, is_there = adapter_registry.gguf_of, threading.Event()

    def slow(wanted, *arguments, **more):
        assert wanted.name != "a" or is_there.wait(20)
        return convert(wanted, *arguments, **more)

    monkeypatch.setattr(adapter_registry, "gguf_of", slow)

    async def test(watched: Watched) -> None:
        for number, name in enumerate("ab"):
            write_tiny_lora(watched.folder / f"{name}.gguf", number)
        assert await watched.twice() == ["b"]
        (watched.folder / "b.gguf").unlink()
        assert await watched.look() == []
        is_there.set()
        await asyncio.wait(watched.watch.adding.values())
        assert await watched.look() == ["a"]

    watching(test)


@pytest.mark.lasting
def test_a_trainers_folder_is_taken_with_all_its_files(watching):
    """Without its weights it is refused; with them it is looked at again."""

    async def test(watched: Watched) -> None:
        made = write_adapter(watched.folder.with_name("made"))
        target = watched.folder / "peft"
        target.mkdir()
        shutil.copy(made / "adapter_config.json", target)
        assert await watched.twice() == []
        shutil.copy(made / "adapter_model.safetensors", target)
        assert await watched.twice() == []  # its base is not here

    told = watching(test)
    assert told.count("peft` is not served") == 2
    assert "its base 'org/base' is not on this machine" in told


@pytest.mark.lasting
def test_the_server_is_ready_when_what_was_in_the_folder_is_served(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_folder, "POLL_S", 0.02)
    monkeypatch.setattr(adapter_folder, "SETTLE_S", 0.1)
    folder = tmp_path / "watched"
    folder.mkdir()
    for name in "xy":
        write_tiny_lora(folder / f"{name}.gguf")
    (folder / "bad.gguf").write_text("x")

    async def test(server: Server) -> None:
        running = asyncio.ensure_future(begin(server.gateway))
        await asyncio.sleep(0)
        assert server.gateway.is_loading
        await eventually(lambda: not server.gateway.is_loading)
        assert await server.ids() == ["m", "m:x", "m:y"]
        assert await server.answer("m:x") == "x"
        (folder / "x.gguf").unlink()
        await eventually(lambda: len(server.gateway.catalog.ids()) == 2)
        running.cancel()

    serve(test, adapter_dir=folder)


def test_names_are_those_of_files_and_folders(tmp_path):
    for name in ("b.gguf", "a.lora.gguf", "v1.5-x.gguf", "c.bin"):
        (tmp_path / name).write_text("x")
    write_adapter(tmp_path / "llama-3.2-pirate")
    write_adapter(tmp_path / "b")  # the name of a file comes first, or not: one of them is taken
    (tmp_path / "gone.gguf").symlink_to("nowhere")

    assert sorted(adapters_in(tmp_path)) == ["a", "b", "llama-3.2-pirate", "v1.5-x"]
