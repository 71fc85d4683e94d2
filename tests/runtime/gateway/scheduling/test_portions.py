"""Long lists of texts, which reach an engine in portions."""

from __future__ import annotations

import asyncio
import json

import pytest

from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.scheduling.portions import Joined
from tests.support.fake_pool import asked, eventually, hold, running


@pytest.mark.lasting
@pytest.mark.parametrize(
    ("route", "name", "entries", "more"),
    [("/v1/embeddings", "input", "data", {}), ("/v1/completions", "prompt", "choices", {})],
)
def test_long_lists_are_handed_over_in_portions_and_answered_as_one(
    route, name, entries, more, model, tmp_path
):
    log = tmp_path / "asked"
    texts = ["x" * number for number in range(1, 8)]

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        status, body = await asked(gateway, route, {name: texts, **more})
        assert status == 200
        assert [entry["index"] for entry in body[entries]] == list(range(7))
        values = [entry.get("text", entry.get("embedding")) for entry in body[entries]]
        begun = [f"<s>{text}" for text in texts]  # the model's file says so
        assert values == (begun if name == "prompt" else [[float(n)] for n in range(1, 8)])
        assert body["usage"]["total_tokens"] == 7  # of as many portions: each half of the slots

    running(test, tmp_path, model("m", asked=str(log)))
    lists = [json.loads(line)[name] for line in log.read_text().splitlines()]
    assert [len(one) if isinstance(one, list) else 1 for one in lists] == [1] * 7


def test_a_stream_of_many_texts_is_one_stream(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        body = {"prompt": list("abcde"), "stream": True}
        status, text = await asked(gateway, "/v1/completions", body)
        assert status == 200
        *events, done, end = text.split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
        assert choices == [{"index": n, "text": f"<s>{t}"} for n, t in enumerate("abcde")]

    running(test, tmp_path, model("m"))


def test_texts_that_are_ranked_in_portions_are_sorted_as_one_list():
    joined = Joined()
    for offset, scores in ((0, [3.0, 1.0]), (2, [2.0, 4.0])):
        entries = [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]
        joined.add(json.dumps({"results": entries, "usage": {"total_tokens": 5}}).encode(), offset)

    found = json.loads(joined.text(3))
    assert [entry["index"] for entry in found["results"]] == [3, 0, 2]
    assert found["usage"] == {"total_tokens": 10}


@pytest.mark.lasting
def test_between_portions_it_is_others_turn(model, tmp_path):
    log = tmp_path / "asked"

    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        await hold(pool, catalog.find("m"))
        long = asyncio.ensure_future(asked(gateway, "/v1/completions", {"prompt": ["x"] * 60}))
        await eventually(log.exists)
        await asked(gateway, "/v1/completions", {"prompt": "me"})
        assert not long.done()
        await long

    running(test, tmp_path, model("m", asked=str(log), takes_s=0.02))
