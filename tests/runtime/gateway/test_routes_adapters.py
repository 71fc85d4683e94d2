"""What the routes for adapters refuse, and that a refusal changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.gateway import adapter_registry
from runtime.gateway.adapter_places import permitted
from runtime.gateway.api_errors import ApiError
from runtime.gateway.request_limits import Limits
from runtime.gateway.settings import Settings
from tests.support.changing_server import LOAD, UNLOAD, Server
from tests.support.fake_hub import FakeHub
from tests.support.fake_pool import asked, eventually
from tests.support.hub_files import REPO
from tests.support.raw import write_adapter, write_tiny_gguf
from tests.support.tiny_lora import OUTPUT, write_tiny_lora

BROKEN: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (lambda path: None, 404, "there is no"),
    "cut": (lambda path: path.write_bytes(write_tiny_lora(path).read_bytes()[:500]), 400, "not a"),
    "text": (lambda path: path.write_text("GGUF"), 400, "not a whole GGUF"),
    "model": (write_tiny_gguf, 400, "is a model, not an adapter"),
    "other": (lambda path: write_tiny_lora(path, architecture="gemma"), 400, "it adapts a gemma"),
    "wide": (lambda path: write_tiny_lora(path, width=512), 400, "is for 288 × 512"),
    "alone": (
        lambda path: write_tiny_lora(path, tensors={f"{OUTPUT}.lora_a": (256, 1)}),
        400,
        "only one of A and B",
    ),
    "ranks": (
        lambda path: write_tiny_lora(
            path, tensors={f"{OUTPUT}.lora_a": (256, 1), f"{OUTPUT}.lora_b": (2, 288)}
        ),
        400,
        "the ranks of",
    ),
    "stranger": (
        lambda path: write_tiny_lora(path, tensors={"blk.0.attn_q.weight": (8, 8)}),
        400,
        "neither an A nor a B",
    ),
    "empty": (lambda path: write_tiny_lora(path, tensors={}), 400, "no tensor"),
}


@pytest.mark.lasting
def test_what_does_not_fit_is_refused_and_disturbs_nothing(serve):
    async def test(server: Server) -> None:
        await server.load("a")
        assert await server.answer("m:a") == "a"
        engines = dict(server.pool.engines)
        for kind, (make, expected, words) in BROKEN.items():
            make(server.folder / f"{kind}.gguf")
            status, told = await server.load(kind)
            assert (status, words in told["error"]["message"]) == (expected, True), told
            assert told["error"].keys() == {"message", "type", "param", "code"}
            assert await server.ids() == ["m", "m:a"]
        assert await server.answer("m:a") == "a"
        assert server.pool.engines == engines
        assert not server.pool.roster.beside

    serve(test)


@pytest.mark.lasting
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "Both 'lora_name' and 'lora_path'"),
        ({"lora_name": "a"}, 400, "Both 'lora_name' and 'lora_path'"),
        ({"lora_name": "", "lora_path": "a.gguf"}, 400, "Both"),
        ({"lora_name": 3, "lora_path": "a.gguf"}, 400, "`lora_name` must be a text"),
        ({"lora_name": "a", "lora_path": ["a.gguf"]}, 400, "`lora_path` must be a text"),
        ({"lora_name": "a", "lora_path": "a.gguf", "load_inplace": 1}, 400, "true or false"),
        ({"lora_name": "a/b", "lora_path": "a.gguf"}, 400, "cannot be an adapter's name"),
        ({"lora_name": "a:b", "lora_path": "a.gguf"}, 400, "cannot be an adapter's name"),
        ({"lora_name": "a@1", "lora_path": "a.gguf"}, 400, "cannot be an adapter's name"),
        ({"lora_name": "a\n", "lora_path": "a.gguf"}, 400, "cannot be an adapter's name"),
        ({"lora_name": "x" * 129, "lora_path": "a.gguf"}, 400, "cannot be an adapter's name"),
        ({"lora_name": "base", "lora_path": "a.gguf"}, 400, "names the base"),
        ({"lora_name": "m", "lora_path": "a.gguf"}, 400, "the name of a served model"),
        ({"lora_name": "a", "lora_path": "/etc/passwd"}, 403, "outside the folders"),
        ({"lora_name": "a", "lora_path": "../m.gguf"}, 403, "outside the folders"),
        ({"lora_name": "a", "lora_path": "link.gguf"}, 403, "outside the folders"),
        ({"lora_name": "a", "lora_path": "a\0.gguf"}, 400, "one line"),
        ({"lora_name": "a", "lora_path": "loop.gguf"}, 400, "cannot be read"),
        ({"lora_name": "a", "lora_path": "x" * 300}, 400, "cannot be read"),
        ({"lora_name": "a", "lora_path": "x" * 5000}, 400, "one line"),
        ({"lora_name": "a", "lora_path": "org/name"}, 403, "--allow-pull"),
        ({"lora_name": "a", "lora_path": "none.gguf"}, 404, "there is no"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(body, status, words, serve):
    async def test(server: Server) -> None:
        (server.folder / "link.gguf").symlink_to(server.folder.parent / "m.gguf")
        (server.folder / "loop.gguf").symlink_to("loop.gguf")
        found, told = await asked(server.gateway, LOAD, body)
        assert (found, words in told["error"]["message"]) == (status, True), told
        assert await server.ids() == ["m"]

    serve(test)


@pytest.mark.lasting
def test_no_path_is_read_where_no_folder_is_named(serve):
    async def test(server: Server) -> None:
        status, told = await server.load("a")
        assert (status, "--adapter-dir DIR" in told["error"]["message"]) == (403, True)

    serve(test, adapter_folders=())


@pytest.mark.lasting
def test_a_path_is_looked_for_in_the_folders(serve):
    async def test(server: Server) -> None:
        assert (await server.load("a", "a.gguf"))[0] == 200
        (server.folder / "b2.gguf").symlink_to("b.gguf")
        assert (await server.load("b", "b2.gguf"))[0] == 200

    serve(test)


@pytest.mark.lasting
def test_unknown_names_are_not_removed(serve):
    async def test(server: Server) -> None:
        status, told = await server.unload("a")
        assert status == 404
        assert told["error"]["message"] == "The lora adapter 'a' cannot be found."
        assert (await asked(server.gateway, UNLOAD, {}))[0] == 400
        assert (await server.unload("m"))[0] == 404

    serve(test)


@pytest.mark.lasting
def test_there_are_only_so_many_names(serve):
    async def test(server: Server) -> None:
        assert [(await server.load(name))[0] for name in "abc"] == [200, 200, 400]
        _, told = await server.load("c")
        assert told["error"]["code"] == "too_many"
        assert "--limit adapters=N" in told["error"]["message"]
        assert (await server.load("b", load_inplace=True))[0] == 200
        await server.unload("a")
        assert (await server.load("c"))[0] == 200

    serve(test, limits=Limits(adapters=2))


@pytest.mark.lasting
def test_two_that_take_one_name_at_once_get_it_once(serve):
    async def test(server: Server) -> None:
        loads = [server.load("x", server.folder / f"{name}.gguf") for name in "abc"]
        found = await asyncio.gather(*loads)
        assert sorted(int(status) for status, _ in found) == [200, 400, 400]
        assert await server.ids() == ["m", "m:x"]

    serve(test)


@pytest.mark.lasting
def test_a_peft_folder_without_its_base_here_says_what_to_do(serve):
    async def test(server: Server) -> None:
        write_adapter(server.folder / "peft")
        status, told = await server.load("p", server.folder / "peft")
        assert status == 400
        assert "its base 'org/base' is not on this machine" in told["error"]["message"]
        assert "--allow-pull" in told["error"]["message"]

    serve(test)


@pytest.mark.parametrize("place", ["org/name", "org/name@main", "https://huggingface.co/org/name"])
def test_a_repo_is_taken_only_where_downloads_are_allowed(place, tmp_path):
    settings = Settings(adapter_folders=(tmp_path,))

    assert permitted(place, replace(settings, allow_pull=True)) == place
    with pytest.raises(ApiError, match="--allow-pull"):
        permitted(place, settings)


@pytest.mark.lasting
def test_a_repos_adapter_is_downloaded_and_served(serve, tmp_path, monkeypatch):
    """And where downloads are not allowed, nothing is asked of the hub."""
    content = write_tiny_lora(tmp_path / "parrot.gguf", 3).read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    async def test(server: Server) -> None:
        status, told = await server.load("parrot", f"{REPO}:F16")
        if not server.gateway.settings.allow_pull:
            assert (status, "--allow-pull" in told["error"]["message"]) == (403, True), told
            return
        assert (status, await server.ids()) == (200, ["m", "m:parrot"]), told
        assert await server.answer("m:parrot")
        assert (await server.load("other", f"{REPO}:Q8_0"))[0] == 400

    with FakeHub({"parrot-F16.gguf": content}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        serve(test, allow_pull=False)
        assert hub.requests == []
        serve(test, allow_pull=True)
        assert hub.sent >= len(content)


def test_a_folder_comes_before_a_repo_of_its_name(tmp_path):
    write_adapter(tmp_path / "org" / "name")
    settings = Settings(adapter_folders=(tmp_path / "none", tmp_path), allow_pull=True)

    assert permitted("org/name", settings) == str(tmp_path / "org" / "name")


@pytest.mark.lasting
def test_a_slow_adapter_delays_only_another_of_its_name(serve, monkeypatch):
    """Folders whose configs cannot be read to their ends yet stand for slow downloads."""
    monkeypatch.setattr(adapter_registry, "SLOW_MAX", 2)
    slow = [f"slow{number}" for number in range(3)]

    async def test(server: Server) -> None:
        def config(name: str) -> Path:
            return server.folder / name / "adapter_config.json"

        for name in slow:
            config(name).parent.mkdir()
            os.mkfifo(config(name))
        coming = [asyncio.ensure_future(server.load(one, config(one).parent)) for one in slow]
        again = asyncio.ensure_future(server.load(slow[0], server.folder / "b.gguf"))
        await eventually(lambda: len(server.gateway.adapters.pending) == len(slow))
        assert (await server.load("a"))[0] == 200
        assert (await server.answer("m:a"), await server.answer("m")) == ("a", "")
        status, told = await server.load("b")  # those that come count, too
        assert (status, "and this server takes 4" in told["error"]["message"]) == (400, True)
        assert not any(one.done() for one in (*coming, again))
        for name in slow:
            await asyncio.to_thread(config(name).write_text, "{}")
        assert [(await one)[0] for one in coming] == [400] * 3
        assert (await again)[0] == 200
        assert await server.ids() == ["m", "m:a", f"m:{slow[0]}"]
        assert not server.gateway.adapters.pending

    serve(test, limits=Limits(adapters=4))


@pytest.mark.lasting
def test_a_file_of_two_names_is_watched_until_both_are_gone(serve):
    async def test(server: Server) -> None:
        seen, path = server.pool.adapter_files.seen, server.folder / "a.gguf"
        for name in ("p", "q"):
            assert (await server.load(name, path))[0] == 200
        await server.unload("p")
        assert path in [adapter for adapter, _ in seen]
        await server.unload("q")
        assert path not in [adapter for adapter, _ in seen]

    serve(test)


@pytest.mark.lasting
def test_what_is_no_file_is_refused_before_it_is_read(serve):
    async def test(server: Server) -> None:
        os.mkfifo(server.folder / "pipe.gguf")
        status, told = await server.load("pipe")
        assert (status, "neither a file nor a folder" in told["error"]["message"]) == (400, True)

    serve(test)
