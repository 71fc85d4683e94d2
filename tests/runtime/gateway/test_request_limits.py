"""What one request may hold, whatever API it speaks."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import InputError
from runtime.gateway import body_reader as bodies_module
from runtime.gateway.api_errors import ApiError
from runtime.gateway.body_reader import Bodies
from runtime.gateway.request_limits import Limits, limits_of, refuse_too_many
from runtime.gateway.settings import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "serve.md"
SMALL = Limits(
    prompts=2, inputs=2, messages=2, parts=2, tools=2, n=2, stops=2, biases=2, breakers=2,
    grammar_bytes=40, classes=2, schema_nodes=20, schema_depth=8, properties=2, items=2,
)  # fmt: skip
HI = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "hi"}
WIDE = {"properties": {"a": {}, "b": {}, "c": {}}}
HIGH = {"properties": {"a": {"items": {"items": {"items": {"anyOf": [{"not": {}}]}}}}}}
DEEP = {"anyOf": [{"enum": list(range(20))}]}
TOO_MUCH: dict[str, list[dict[str, Any]]] = {
    "prompts": [
        {"prompt": ["", "", ""]}, {"prompt": [[1], [2], [3]]},
        {"prompt": {"prompt_string": "", "multimodal_data": ["", "", ""]}},
    ],
    "inputs": [{name: ["a", "b", "c"]} for name in ("input", "documents", "texts", "content")],
    "messages": [{"messages": [HI] * 3}],
    "parts": [
        {"messages": [{"role": "user", "content": [PART] * 3}]},
        {"messages": [{"role": "user", "content": [PART, {"content": [PART, PART]}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}] * 3}]},
        {"messages": [{"role": "user", "images": ["", "", ""]}]},
        {"messages": [HI], "system": [PART] * 3},
        {"input": [{"role": "user", "content": [PART] * 3}]},
    ],
    "tools": [{"tools": [{}] * 3}],
    "n": [{"n": 3}, {"n_cmpl": 3}, {"n": 3.5}],
    "stops": [{"stop": list("abc")}, {"stop_sequences": list("abc")},
              {"options": {"stop": list("abc")}}],
    "biases": [{"logit_bias": [[1, 1]] * 3}, {"logit_bias": {"1": 1, "2": 1, "3": 1}}],
    "breakers": [{"dry_sequence_breakers": list("abc")}],
    "grammar_bytes": [{"grammar": "é" * 21}],
    "classes": [
        {"grammar": "root ::= [a] [^b] [c-d]"}, {"grammar": "root ::= [a] . ."},
        {"grammar": 'root ::= ["] [a] [b] ["]'}, {"grammar": '# "\nroot ::= [a] . [\\]"]'},
        {"json_schema": {"pattern": r"^\d[a]\w$"}},
        {"tools": [{"function": {"parameters": {"anyOf": [{"pattern": "[a]"}] * 3}}}]},
    ],
    "properties": [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": WIDE}}},
        {"json_schema": WIDE}, {"format": WIDE},
        {"tools": [{"function": {"parameters": {"properties": {"x": WIDE}}}}]},
        {"tools": [{"input_schema": WIDE}]}, {"text": {"format": {"schema": WIDE}}},
    ],
    "schema_nodes": [{"json_schema": DEEP}, {"tools": [{"function": {"parameters": DEEP}}]}],
    "schema_depth": [{"json_schema": HIGH}, {"tools": [{"function": {"parameters": HIGH}}]}],
    "items": [{name: [1, 2, 3]} for name in ("samplers", "response_fields", "preserved_tokens")],
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_request_that_holds_too_much_is_refused_with_both_numbers(name):
    for body in TOO_MUCH[name]:
        with pytest.raises(ApiError, match=f"this server takes {getattr(SMALL, name)}") as caught:
            refuse_too_many(body, SMALL)
        assert caught.value.status == 400
        refuse_too_many(body, Limits())


def test_what_is_just_allowed_passes():
    refuse_too_many(
        {"prompt": ["a", "b"], "messages": [HI, HI], "n": 2, "stop": ["a", "b"], "logit_bias": [],
         "grammar": "ab", "tools": [{}, {}], "json_schema": {"properties": {"a": {}, "b": {}}}},
        SMALL,
    )  # fmt: skip


def test_the_tokens_of_one_text_are_one_prompt():
    for name in ("prompt", "input", "content"):
        refuse_too_many({name: list(range(99))}, SMALL)
    refuse_too_many({"tokens": list(range(99))}, SMALL)


def test_every_limit_can_be_changed_by_its_name():
    for field in fields(Limits):
        assert getattr(limits_of([f"{field.name}=7"]), field.name) == 7
    assert limits_of(["grammar-bytes = 9"]).grammar_bytes == 9


def test_the_documents_table_has_every_limit():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    told = {}
    for names, values in rows:
        if "limit" not in names:
            told |= dict(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=False))

    for field in fields(Limits):
        most = getattr(Limits(), field.name)
        shown = f"{most >> 20} MiB" if "body" in field.name else f"{most:,}"
        assert told.get(field.name) == shown, field.name


@pytest.mark.parametrize("text", ["inputs", "inputs=", "inputs=x", "inputs=-1", "inputs=1e3",
                                  "inputs=" + "9" * 70, "none=1", "=1", "inputs=٣"])  # fmt: skip
def test_a_limit_is_a_name_and_a_number(text):
    with pytest.raises(InputError):
        limits_of([text])


def taken(body: bytes, settings: Settings, *, sees: bool = False) -> dict[str, Any]:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> dict[str, Any]:
        async with Bodies(settings, sees=sees).take({"headers": []}, receive, "") as found:
            return found.body

    return asyncio.run(read())


def test_values_are_counted_before_any_is_made(monkeypatch):
    monkeypatch.setattr(bodies_module, "parse", lambda body: pytest.fail("it was parsed"))
    settings = Settings(limits=Limits(values=9))
    for text in (b'{"a": [1,2,3,4,5,6,7,8,9]}', b'{"a": [[[[[[[[[]]]]]]]]]}', b"[{},{},{},{},{}]"):
        with pytest.raises(ApiError, match="this server takes 9") as caught:
            taken(text, settings)
        assert caught.value.status == 400


def test_bodies_may_be_larger_where_a_model_sees():
    settings = Settings(limits=Limits(body=20, media_body=40))
    body = json.dumps({"a": "x" * 20}).encode()

    assert taken(body, settings, sees=True) == {"a": "x" * 20}
    with pytest.raises(ApiError) as caught:
        taken(body, settings)
    assert caught.value.status == 413


@pytest.mark.lasting
def test_large_bodies_are_read_beside_the_loop_which_answers_meanwhile(monkeypatch):
    """Of 20 at once two are worked on."""
    body = json.dumps({"prompt": list(range(200_000))}).encode()
    waits: list[float] = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def run() -> None:
        loop = asyncio.get_running_loop()
        bodies = Bodies(Settings(), sees=False)

        async def take() -> None:
            async with bodies.take({"headers": []}, receive, ""):
                pass

        work = asyncio.gather(*(take() for _ in range(20)))
        while not work.done():
            began = loop.time()
            await asyncio.sleep(0.01)
            waits.append(loop.time() - began)
        await work

    asyncio.run(run())
    assert len(waits) > 20
    assert max(waits) < 0.5


@pytest.mark.lasting
def test_large_bodies_of_one_client_leave_a_thread_to_the_others():
    body = b'{"a": "' + b"0" * 100_000 + b'"}'
    order: list[str] = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    class Slow(Bodies):
        def parse_within(self, text: bytes) -> dict[str, Any]:
            time.sleep(0.05)
            return super().parse_within(text)

    async def run() -> None:
        bodies = Slow(Settings(), sees=False)

        async def take(client: str) -> None:
            async with bodies.take({"headers": []}, receive, client):
                order.append(client)

        await asyncio.gather(*(take("many") for _ in range(9)), take("one"))
        assert not bodies.turns

    asyncio.run(run())
    assert order.index("one") < 3


def test_one_client_cannot_hold_all_the_memory_for_bodies(monkeypatch):
    monkeypatch.setattr(bodies_module, "CLIENT_MAX", 30)
    monkeypatch.setattr(bodies_module, "HELD_MAX", 50)
    settings = Settings(limits=Limits(body=25))

    async def receive():
        return {"type": "http.request", "body": b'{"a": "0123456789"}', "more_body": False}

    async def run() -> None:
        bodies = Bodies(settings, sees=False)

        def of(client: str):
            return bodies.take({"headers": []}, receive, client)

        async with of("one"):
            with pytest.raises(ApiError) as caught:
                async with of("one"):
                    pass
            assert caught.value.status == 429
            async with of("two"):
                with pytest.raises(ApiError) as caught:
                    async with of("three"):
                        pass
                assert caught.value.status == 503
        assert not bodies.held

    asyncio.run(run())


def test_classes_in_texts_and_comments_are_not_counted():
    grammar = 'root ::= "[a] . [b] \\" ." [c] # [d] . "\n'

    refuse_too_many({"grammar": grammar}, Limits(classes=1))
