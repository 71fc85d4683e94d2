"""A chat with a server elsewhere."""

from __future__ import annotations

import json

import pytest

from exporter.core.errors import EngineError, InputError
from runtime.engine.openai_client import Delta, Stopped, Thought, ask
from runtime.engine.remote import parse_url, read_key
from runtime.engine.remote_engine import RemoteEngine
from runtime.engine.selection import AdapterSelection
from tests.support.fake_openai import OpenAIServer

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("localhost:1234", "http://localhost:1234"),
        ("https://example.org/api/v1", "https://example.org/api"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_an_address_is_taken_with_or_without_its_end(text, shown):
    assert str(parse_url(text, None)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://a",
        "http://",
        "http://a:b",
        "http://user:secret@host",
        "http://a/?q=1",
        "http://a..b",
        "http://ex ample",
        "http://-a",
        "http://\x1b",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError):
        parse_url(text, None)


def test_a_key_crosses_a_network_unencrypted_only_with_a_warning():
    assert parse_url("http://example.org", "key").is_exposed
    assert not parse_url("http://127.0.0.1:1", "key").is_exposed
    assert not parse_url("https://example.org", "key").is_exposed
    assert "key" not in repr(parse_url("https://example.org", "secret-key"))


def test_a_key_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    path.chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        read_key(path)
    path.chmod(0o600)

    assert read_key(path) == "sk-1"
    path.write_text("two words")
    with pytest.raises(InputError, match="no key"):
        read_key(path)


def test_the_answer_comes_in_pieces_with_what_was_thought():
    with OpenAIServer(["Par", "is."], thoughts=["hm"]) as server:
        engine = RemoteEngine(parse_url(server.url, None), None)
        *pieces, last = engine.answer(HELLO, {"temperature": 0}, AdapterSelection())

    assert pieces == [Thought("hm"), Delta("Par"), Delta("is.")]
    assert isinstance(last, Stopped)
    assert server.asked[0]["model"] == "first"
    assert server.asked[0]["temperature"] == 0


def test_a_wrong_key_a_wrong_name_and_nobody_there_are_told():
    with OpenAIServer(["x"], key="right") as server:
        with pytest.raises(EngineError, match="wrong key"):
            RemoteEngine(parse_url(server.url, "wrong"), None)
        remote = parse_url(server.url, "right")
        with pytest.raises(EngineError, match="no model 'third'"):
            RemoteEngine(remote, "third")
        assert RemoteEngine(remote, "second").model == "second"
    with pytest.raises(EngineError, match="does not answer"):
        RemoteEngine(remote, None)


def test_an_answer_that_breaks_off_is_told(monkeypatch):
    with OpenAIServer(["x"]) as server:
        whole = server.stream()
        monkeypatch.setattr(server, "stream", lambda: whole[: len(whole) // 3])
        with pytest.raises(EngineError, match="broke off"):
            list(ask(parse_url(server.url, None), HELLO, {}))


def test_what_is_no_stream_of_openais_is_told(monkeypatch):
    with OpenAIServer(["x"]) as server:
        monkeypatch.setattr(server, "stream", lambda: b"data: [1]\n\n")
        with pytest.raises(EngineError, match="piece of an answer"):
            list(ask(parse_url(server.url, None), HELLO, {}))


def streamed(*chunks: object) -> bytes:
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)


END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (streamed({"choices": 5}, END), ""),
        (streamed({"choices": ["x", {"delta": "y"}]}, END), ""),
        (streamed({"choices": [{"delta": {"content": ["a"]}}]}, END), ""),
        (streamed({"usage": {"completion_tokens": "many"}, "timings": 3}, END), ""),
        (streamed({"usage": {"prompt_tokens_details": [1]}}, END), ""),
        (streamed({"choices": [{"delta": {"content": "ok"}}]}, END), "ok"),
        (b"data: " + b"[" * 100_000 + b"\n\n", EngineError),
        (b"data: {\n\n", EngineError),
        (b"error: {}\n\n", EngineError),
        (streamed({"error": {"message": "no more \x1b]0;x\x07memory"}}), EngineError),
    ],
    ids=str,
)
def test_nothing_that_a_server_sends_is_more_than_an_error(monkeypatch, sent, text):
    with OpenAIServer(["x"]) as server:
        monkeypatch.setattr(server, "stream", lambda: sent)
        answer = ask(parse_url(server.url, None), HELLO, {})
        if text is EngineError:
            with pytest.raises(EngineError) as caught:
                list(answer)
            assert "\x1b" not in caught.value.message
        else:
            assert "".join(piece.text for piece in answer if isinstance(piece, Delta)) == text


@pytest.mark.parametrize("listing", ['{"data": 5}', "[" * 100_000, '{"data": [5, {"id": 3}]}', "x"])
def test_no_listing_of_models_is_more_than_an_error(monkeypatch, listing):
    with OpenAIServer(["x"]) as server:
        monkeypatch.setattr(server, "listing", listing.encode())
        with pytest.raises(EngineError):
            RemoteEngine(parse_url(server.url, None), None)


def test_names_of_models_cannot_command_the_terminal(monkeypatch):
    with OpenAIServer(["x"]) as server:
        monkeypatch.setattr(server, "listing", b'{"data": [{"id": "m\\u001b]0;x\\u0007"}]}')

        assert RemoteEngine(parse_url(server.url, None), None).model == "m]0;x"


def test_a_server_that_does_not_stream_is_read_at_once():
    whole = {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}
    with OpenAIServer(["x"], whole=whole) as server:
        *pieces, last = ask(parse_url(server.url, None), HELLO, {})

    assert pieces == [Delta("Paris.")]
    assert last.reason == "stop"


@pytest.mark.lasting
def test_the_command_line_talks_to_it(decant, tmp_path):
    key = tmp_path / "key"
    key.write_text("right")
    key.chmod(0o600)
    with OpenAIServer(["Paris."], key="right") as server:
        url = ("chat", "--url", server.url + "/v1", "--key-file", key)
        done = decant(*url, "--model", "second", "-p", "hello", "--json")
        refused = decant("chat", "--url", server.url, "-p", "hello")
        mixed = decant(*url, "--adapter", "a=b", "-p", "hello")

    assert json.loads(done.stdout)["answer"] == "Paris."
    assert server.asked[0]["model"] == "second"
    assert (refused.returncode, "--key-file" in refused.stderr) == (9, True)
    assert mixed.returncode == 2
