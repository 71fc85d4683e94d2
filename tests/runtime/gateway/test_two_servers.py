"""Two servers on one store answer independently, and each reports a model that is deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.llamacpp.toolchain import cache_folder
from exporter.model_store import find_models, remove_models
from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import Served, chat, serving, until

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

QUESTIONS = PROMPTS * 3


@pytest.fixture
def store(pirate, tmp_path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(pirate, folder / pirate.name)
    return folder


@pytest.fixture
def two(store, tmp_path) -> Iterator[list[Served]]:
    env = {"DECANT_STORE": str(store)}
    with ExitStack() as stack:
        yield [stack.enter_context(serving(tmp_path, "--ttl", "2s", env=env)) for _ in range(2)]


def answers(served: Served) -> list[str]:
    return [served.says("pirate", question) for question in QUESTIONS]


@pytest.mark.lasting
def test_both_answer_at_once_and_a_deleted_model_is_told_by_both(two, store, tmp_path):
    one, other = two
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(answers, two)
    assert first == second
    assert first[: len(PROMPTS)] * 3 == first

    with one.send("DELETE", "/api/delete", {"model": "pirate"}) as refused:
        assert refused.status == 501
    expected = one.says("pirate", PROMPTS[0])
    assert other.says("pirate", PROMPTS[0]) == expected
    remove_models(find_models("pirate", store))
    assert not list(store.glob("pirate*"))
    assert one.says("pirate", PROMPTS[0]) == expected  # as long as it is loaded
    assert other.says("pirate", PROMPTS[0]) == expected
    for served in two:
        assert until(lambda served=served: not served.children())
        status, body = served.ask("/v1/chat/completions", chat("pirate", PROMPTS[0]))
        assert status == 503
        assert "cannot be read any more" in body["error"]["message"]
        assert str(tmp_path) not in body["error"]["message"]


@pytest.mark.slow
def test_three_that_need_the_same_base_and_adapter_make_them_once(demo_models, tmp_path):
    """All of them begin with an empty store and an empty cache of converted adapters."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for kept in ("llama.cpp", "kquants"):
        (cache / kept).symlink_to(cache_folder() / kept)
    env = {"DECANT_STORE": str(tmp_path / "store"), "DECANT_CACHE": str(cache)}

    def ask(number: int) -> tuple[list[str], str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        with serving(folder, demo_models.adapter, "--base", demo_models.base, env=env) as served:
            return served.models, served.says(served.models[-1], PROMPTS[0])

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, range(3)))
    assert found[0] == found[1] == found[2]
    assert found[0][1].startswith("Arr")
    assert len(list((tmp_path / "store").glob("*.gguf"))) == 1
    assert len(list((cache / "adapters").glob("*.gguf"))) == 1
