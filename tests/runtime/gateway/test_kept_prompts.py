"""A conversation goes on after its model was unloaded, or the server ended."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.runtime.gateway.conftest import serving, until
from tests.support.long_prompts import asked, cached, end, text_of

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.lasting]


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def env(data) -> dict[str, str]:
    return {"XDG_DATA_HOME": str(data)}


def kept(data: Path) -> list[Path]:
    return list((data / "decant" / "prompts").glob("*"))


def test_after_an_unload_the_prompt_is_read_from_disk(voices, tmp_path, env, data):
    with serving(tmp_path, *voices, "--ttl", "1s", env=env) as served:
        first = asked(served, "base:pirate")
        assert until(lambda: not served.children())
        assert len([path for path in kept(data) if path.suffix == ".prompt"]) == 1
        other = asked(served, "base:liar")
        again = asked(served, "base:pirate")

    assert cached(first) == cached(other) == 0
    assert cached(again) > 60
    assert text_of(again) == text_of(first) != text_of(other)


def test_after_a_restart_too_and_by_the_same_voice_only(voices, tmp_path, env):
    with serving(tmp_path, *voices, env=env) as served:
        first = asked(served, "base:pirate")
        end(served)
    with serving(tmp_path, *voices, env=env) as served:
        found = {name: asked(served, name) for name in ("base", "base:liar", "base:pirate")}

    assert {name: cached(one) > 60 for name, one in found.items()} == {
        "base": False, "base:liar": False, "base:pirate": True,
    }  # fmt: skip
    assert text_of(found["base:pirate"]) == text_of(first)


def test_an_added_adapter_costs_no_conversation_its_prompt(voices, tmp_path, env, data, liar_lora):
    """The engine that has the adapter takes over what the earlier one has computed."""
    more = ("--parallel", "2", "--allow-adapter-path", liar_lora.parent)
    with serving(tmp_path, *voices, *more, env=env) as served:
        first = asked(served, "base:pirate")
        (engine,) = served.children()
        body = {"lora_name": "another", "lora_path": str(liar_lora)}
        with served.send("POST", "/v1/load_lora_adapter", body) as response:
            assert response.status == 200
        other = asked(served, "base:another")
        assert until(lambda: engine not in served.children())
        assert until(lambda: [path for path in kept(data) if list(path.glob("restored"))])
        time.sleep(0.3)  # for the engine to read it
        again = asked(served, "base:pirate")

    assert cached(other) == 0
    assert cached(again) > 60
    assert text_of(again) == text_of(first) != text_of(other)


@pytest.mark.slow
def test_prompts_stay_with_their_voices_while_adapters_come_and_go(
    voices, tmp_path, env, liar_lora, pirate_lora
):
    """Engines hand over long prompts, several at a time, while others are being replaced."""
    dice, files = random.Random(4), {"x": liar_lora, "y": pirate_lora}
    allowed = [part for path in files.values() for part in ("--allow-adapter-path", path.parent)]
    with serving(tmp_path, *voices, *allowed, "--parallel", "4", env=env) as served:

        def change(route: str, name: str) -> None:
            body = {"lora_name": name, "lora_path": str(files[name])}
            with served.send("POST", f"/v1/{route}_lora_adapter", body) as response:
                assert response.status == 200

        told = {name: text_of(asked(served, f"base:{name}")) for name in ("liar", "pirate")}
        told |= {"x": told["liar"], "y": told["pirate"]}
        caches = 0
        for _ in range(15):
            for name in files:
                change("load", name)
            for name, text in told.items():
                answer = asked(served, f"base:{name}")
                assert text_of(answer) == text
                caches += cached(answer) > 60
            for name in files:
                change("unload", name)
                time.sleep(dice.random() / 4)
        assert until(lambda: len(served.children()) == 1)
        assert "exception" not in served.log.read_text()

    assert caches > 15  # prompts were handed over


def test_a_killed_server_leaves_nothing_that_the_next_one_uses(voices, tmp_path, env, data):
    with serving(tmp_path, *voices, env=env) as served:
        asked(served, "base:pirate")
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
    with serving(tmp_path, *voices, env=env) as served:
        assert cached(asked(served, "base:pirate")) == 0
        end(served)

    assert {path.suffix for path in kept(data)} == {".prompt"}


def test_without_room_nothing_is_written(voices, tmp_path, env, data):
    with serving(tmp_path, *voices, "--keep-prompts", "0", env=env) as served:
        asked(served, "base:pirate")
        end(served)

    assert kept(data) == []


def test_a_speculation_that_no_model_can_use_ends_the_start(voices, decant):
    done = decant("serve", voices[0], "--port", "0", "--spec", "mtp")

    assert done.returncode == 3
    assert "no layers that predict several tokens" in done.stderr
