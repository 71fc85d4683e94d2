"""Bodies: what is refused before a child sees it, and what a child is sent."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model, open_model
from runtime.gateway.api_errors import ApiError, ClientGoneError
from runtime.gateway.body import cost, dumped, parse, prepared, refuse_wrong_ids
from runtime.gateway.body_reader import Bodies
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.request_limits import Limits
from runtime.gateway.settings import Settings
from tests.support.png import png_head
from tests.support.raw import write_tiny_gguf

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=25,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    bare = open_model(write_tiny_gguf(tmp_path_factory.mktemp("model") / "m.gguf"))
    return replace(bare, chat_template="{{ messages[0].content }}")


@pytest.fixture
def resolved(model) -> ResolvedModel:
    adapter = Adapter("pirate", model.header.path, 1.0)
    return ResolvedModel("m:pirate", "m", model, adapter, (0.0, 1.0))


@pytest.mark.lasting
@given(st.dictionaries(st.text(), JSON))
def test_every_object_comes_through_as_it_was(body):
    assert parse(dumped(parse(json.dumps(body, ensure_ascii=False).encode()))) == body


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": 1}x', b"[]", b"3", b'"x"', b"null", b"\xff{}", b'{"a": NaN}',
     b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e400}', b'{"a": -1e400}',
     b'{"a": 18446744073709551616}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 100_000,
     b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' * 100_000, b"\x00"],
    ids=range(19),
)  # fmt: skip
def test_what_is_no_json_object_is_the_clients_fault(body):
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "text", ["-9223372036854775808", "18446744073709551615", "1e300", "-0.5E-3", '"1e999"']
)
def test_numbers_within_the_engines_range_are_kept(text):
    assert parse(b'{"a": [' + text.encode() + b"]}") == {"a": [json.loads(text)]}


@pytest.mark.parametrize(
    ("prompt", "is_refused"),
    [
        ("a" * 100, False), ([1] * 8, False), ([1] * 9, True), ([[1] * 8] * 20, False),
        ([[1], [1] * 9], True), (["a"] * 20, False), ([*["a"] * 20, 1], False), ([], False),
        ({"prompt_string": "a"}, False),
    ],
)  # fmt: skip
def test_more_token_ids_than_the_context_holds_are_refused(prompt, is_refused):
    with pytest.raises(ApiError) if is_refused else nullcontext() as caught:
        refuse_wrong_ids({"prompt": prompt}, 8)
    if is_refused:
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.message == "the prompt has 9 tokens, and the context holds 8"


@pytest.mark.parametrize("prompt", [[1 << 32], ["a", (1 << 32) + 1], [[1], [1, 1 << 40]]])
def test_ids_of_which_the_engine_would_take_the_lower_bits_are_refused(prompt):
    with pytest.raises(ApiError, match="is no token of this model"):
        refuse_wrong_ids({"prompt": prompt}, 8)
    with pytest.raises(ApiError, match="is no token of this model"):
        refuse_wrong_ids({"input": prompt}, None)


def test_half_of_a_surrogate_pair_is_the_clients_fault():
    with pytest.raises(ApiError) as caught:
        dumped(parse(b'{"a": "\\ud800"}'))
    assert caught.value.status == 400


def test_every_adapter_is_told_its_scale_and_clients_cannot(resolved):
    body = {"model": "m", "lora": [{"id": 0, "scale": 1}], "id_slot": 1, "n_discard": 5,
            "cache_prompt": False, "backend_sampling": True, "top_k": 3}  # fmt: skip

    found = prepared(body, "/completion", resolved, Settings(), can_say=True)

    expected = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    assert found == {"model": "m", "top_k": 3, "lora": expected}


def test_fields_can_be_allowed(resolved):
    settings = Settings(allow_fields=frozenset({"id_slot"}))

    found = prepared(
        {"id_slot": 1, "n_discard": 2}, "/completion", resolved, settings, can_say=False
    )

    assert found == {"id_slot": 1}


@pytest.mark.parametrize(
    ("given", "sent"),
    [({}, {"max_tokens": 10}), ({"max_tokens": 5}, {"max_tokens": 5}),
     ({"max_tokens": 50}, {"max_tokens": 10}), ({"max_tokens": -1}, {"max_tokens": 10}),
     ({"max_completion_tokens": 11}, {"max_completion_tokens": 10}),
     ({"n_predict": None}, {"n_predict": None, "max_tokens": 10})],
)  # fmt: skip
def test_answers_can_be_capped(given, sent, model):
    plain = ResolvedModel("m", "m", model, None, ())
    settings = Settings(max_tokens=10)

    assert prepared(given, "/v1/chat/completions", plain, settings, can_say=True) == sent


@pytest.mark.parametrize("name", ["repeat_last_n", "dry_penalty_last_n"])
def test_a_penalty_looks_back_no_further_than_the_context(name, model):
    """The child makes room for every token: 2**31 of them would take 17 GB."""
    most = model.header.number("llama.context_length")
    for asked, sent in (
        (2**31 - 1, most),
        (1e9, most),
        (most, most),
        (64, 64),
        (-1, -1),
        ("x", "x"),
    ):
        body = prepared(
            {name: asked}, "/v1/completions", ResolvedModel("m", "m", model, None, ()), Settings(),
            can_say=True,
        )  # fmt: skip
        assert body == {name: sent}


def test_without_a_cap_nothing_is_added(model):
    plain = ResolvedModel("m", "m", model, None, ())

    assert prepared({"a": 1}, "/v1/chat/completions", plain, Settings(), can_say=True) == {"a": 1}


def message(part: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}


PICTURE = "data:image/png;base64," + base64.b64encode(png_head(8, 8)).decode()
REMOTE = [
    message({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}),
    message({"type": "image_url", "image_url": "https://example.com/x.png"}),
    message({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
    message({"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}),
    message({"type": "input_image", "image_url": "http://127.0.0.1/x"}),
    message({"type": "tool_result", "content": [
        {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}]}),
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/x"}]}]},
    message({"type": "image_url"}),
    message({"type": "image_url", "image_url": {"url": 3}}),
    message({"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/x"}}),
    message({"type": "input_audio", "input_audio": {"url": "http://127.0.0.1/x"}}),
    message({"type": "video_url", "video_url": {"url": PICTURE, "data": "http://a/x"}}),
    message({"type": "image_url", "image_url": {"url": PICTURE}, "source": {"url": "http://a/x"}}),
    {"content": {"content": [{"type": "image_url", "image_url": {"url": "http://a/x"}}]}},
    {"input": [{"content": [{"type": "input_audio", "input_audio": {"data": "http://a/x"}}]}]},
    message({"type": "image_url", "image_url": {"url": "httpx"}}),
]  # fmt: skip


@pytest.mark.parametrize("body", REMOTE, ids=range(len(REMOTE)))
def test_nothing_is_fetched_for_a_client(body, model, tmp_path):
    seeing = ResolvedModel("m", "m", replace(model, projector=tmp_path), None, ())
    with pytest.raises(ApiError) as caught:
        prepared(body, "/v1/chat/completions", seeing, Settings(), can_say=True)
    assert caught.value.status == 400


def test_images_that_are_sent_are_let_through_where_the_model_sees(model, tmp_path):
    packed = PICTURE.partition(",")[2]
    bodies = [
        message({"type": "image_url", "image_url": {"url": PICTURE}}),
        message({"type": "image", "source": {"type": "base64", "data": packed}}),
    ]
    seeing = ResolvedModel("m", "m", replace(model, projector=tmp_path), None, ())
    blind = ResolvedModel("m", "m", model, None, ())
    for body in bodies:
        assert prepared(body, "/v1/messages", seeing, Settings(), can_say=True) == body
        with pytest.raises(ApiError, match="cannot see"):
            prepared(body, "/v1/messages", blind, Settings(), can_say=True)


def test_hosts_of_images_can_be_allowed(model, tmp_path):
    body = message({"type": "image_url", "image_url": {"url": "https://pictures.example/x"}})
    seeing = ResolvedModel("m", "m", replace(model, projector=tmp_path), None, ())
    settings = Settings(media_hosts=frozenset({"pictures.example"}))

    assert prepared(body, "/v1/messages", seeing, settings, can_say=True) == body


def test_silent_failures_are_said(model):
    plain = ResolvedModel("m", "m", model, None, ())
    for body in ({"echo": True, "logprobs": 1}, {"messages": {}}, {"prompt": 3}):
        with pytest.raises(ApiError):
            prepared(body, "/v1/completions", plain, Settings(), can_say=True)


@pytest.mark.parametrize(
    ("body", "slots"),
    [({}, 1), ({"n": 3}, 3), ({"n": "x"}, 1), ({"n": -2}, 1), ({"prompt": ["a", "b"]}, 2),
     ({"prompt": [1, 2, 3]}, 1), ({"prompt": [[1], "b"], "n": 2}, 4), ({"prompt": []}, 1)],
)  # fmt: skip
def test_each_answer_to_each_prompt_takes_a_slot(body, slots):
    assert cost(body) == slots


def reading(messages, headers=(), **settings) -> dict[str, object]:
    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    scope = {"type": "http", "headers": list(headers)}

    async def read() -> dict[str, object]:
        bodies = Bodies(Settings(**settings), sees=False)
        try:
            async with bodies.take(scope, receive, "") as taken:
                return taken.body
        finally:
            assert not bodies.held

    return asyncio.run(read())


def part(body: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_is_whole():
    parts = [part(b'{"a"', more=True), part(b"", more=True), part(b": 1}", more=False)]
    assert reading(parts) == {"a": 1}


@pytest.mark.parametrize("headers", [[(b"content-length", b"9")], [(b"content-length", b"x")], []])
def test_too_large_a_body_is_refused_as_soon_as_that_is_known(headers):
    with pytest.raises(ApiError) as caught:
        reading([part(b"x" * 9, more=True)], headers, limits=Limits(body=8))
    assert caught.value.status == 413


def test_a_body_that_does_not_come_is_not_waited_for():
    with pytest.raises(ApiError) as caught:
        reading([part(b"x", more=True)], body_s=0.02)
    assert caught.value.status == 408


def test_a_client_that_leaves_while_it_sends_is_noticed():
    with pytest.raises(ClientGoneError):
        reading([part(b"x", more=True), {"type": "http.disconnect"}])


def test_words_that_would_end_a_child_are_refused_and_long_texts_are_not(model):
    pattern = replace(model.header, metadata={"tokenizer.ggml.model": "gpt2"})
    resolved = ResolvedModel("m", "m", Model(pattern), None, ())
    plain = ResolvedModel("m", "m", model, None, ())
    word = "é" * 100_001
    for body in ({"prompt": word}, {"messages": [{"content": [{"text": f"a {word}"}]}]}):
        with pytest.raises(ApiError, match="a word of more than 100000"):
            prepared(body, "/v1/completions", resolved, Settings(), can_say=True)
        assert prepared(body, "/v1/completions", plain, Settings(), can_say=True) == body
    long = {"prompt": "word " * 100_000, "image": "data:" + word}
    assert prepared(long, "/v1/completions", resolved, Settings(), can_say=True) == long


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/apply-template"])
def test_conversations_are_not_for_models_without_a_template(model, route):
    base = ResolvedModel("m", "m", replace(model, chat_template=None), None, ())

    with pytest.raises(ApiError, match="'m' has no chat template") as refused:
        prepared({"messages": []}, route, base, Settings(), can_say=True)
    assert refused.value.code == "no_chat_template"

    body = {"prompt": "the cat"}
    assert prepared(body, "/v1/completions", base, Settings(), can_say=True) == body
