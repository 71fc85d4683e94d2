"""What the server for encoder-decoder models does without a model."""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.gguf import GGUFFile
from runtime.encoder_decoder.answer import Failed, Piece, Text
from runtime.encoder_decoder.http import Listener, as_text, work
from runtime.encoder_decoder.model import EncoderDecoder, is_encoder_decoder
from runtime.engine.socket_connection import SocketConnection
from runtime.process.run_dir import RunFolder

CHECKOUT = Path(__file__).parents[3]


def header(**metadata: str) -> GGUFFile:
    named = {f"general.{key}": value for key, value in metadata.items()}
    return GGUFFile(Path("x.gguf"), 0, named, ())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"architecture": "t5"}, True),
        ({"architecture": "t5encoder"}, False),
        ({"architecture": "llama"}, False),
        ({"architecture": "t5", "type": "adapter"}, False),
        ({}, False),
    ],
)
def test_only_an_encoder_with_a_decoder_is_served_here(metadata, expected):
    assert is_encoder_decoder(header(**metadata)) is expected


def test_knowing_what_is_served_here_loads_nothing_heavy():
    code = "import sys, runtime.encoder_decoder.model; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )

    heavy = {"numpy", "torch", "transformers", "jinja2", "llama_cpp", "http.server"}
    assert heavy.isdisjoint(done.stdout.split())


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[begin:end] for begin, end in itertools.pairwise(places)]


@given(
    st.text("ab€🦜 ", max_size=12),
    st.lists(st.integers(0, 99), max_size=8),
    st.lists(st.text("ab€🦜", max_size=4), max_size=3),
)
def test_the_text_is_the_same_however_its_bytes_are_cut(text, cuts, stops):
    def shown(parts: list[bytes]) -> str:
        made, text = Text(stops), ""
        for part in parts:
            text += "" if made.is_stopped else made.add(part)
        return text + made.end()

    raw = text.encode()

    assert shown(pieces(raw, cuts)) == shown([bytes([byte]) for byte in raw]) == before(text, stops)


def before(text: str, stops: list[str]) -> str:
    """The text up to the stop text that is complete first."""
    for end in range(len(text) + 1):
        found = [len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)]
    return text


def test_a_character_is_held_back_until_it_is_complete():
    text = Text()

    assert [text.add(bytes([byte])) for byte in "é🦜".encode()] == ["", "é", "", "", "", "🦜"]
    assert text.end() == ""


def test_half_a_character_at_the_end_is_shown_as_such():
    text = Text()

    assert text.add("🦜".encode()[:2]) + text.end() == "\ufffd"


def test_what_might_become_a_stop_text_is_held_back_no_longer_than_that():
    text = Text(["\n\n", "END"])

    assert [text.add(part) for part in (b"a\n", b"b E", b"N", b"! E", b"ND c")] == [
        "a", "\nb ", "", "EN! ", "",
    ]  # fmt: skip
    assert (text.is_stopped, text.end()) == (True, "")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [([b" a", b" b"], "a b"), ([b"", b" a"], "a"), ([b" ", b" a"], " a"), ([b"a", b" b"], "a b")],
)
def test_the_space_that_a_tokenizer_put_first_is_taken_away(parts, expected):
    text = Text(strips_space=True)

    assert "".join([*map(text.add, parts), text.end()]) == expected


def test_a_token_that_is_no_text_is_told_in_bytes():
    assert (as_text("é".encode()), as_text("é".encode()[:1])) == ("é", [0xC3])


class NoLlama:
    """llama.cpp when it cannot compute."""

    ggml_abort_callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: -3 if name == "llama_encode" else 1


class NoVocabulary:
    size = 10

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [1] * len(text)


def unable() -> EncoderDecoder:
    return EncoderDecoder(header(), NoLlama(), None, None, NoVocabulary(), 8)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A server whose model is not there yet, and that nobody works for."""
    folder = RunFolder()
    with Listener(folder.socket, "key") as listener:
        Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        yield listener
        listener.shutdown()
    folder.remove()


def call(listener: Listener, method: str, path: str, body: object) -> tuple[int, str]:
    with SocketConnection(Path(listener.server_address), 5) as connection:
        headers = {"Authorization": "Bearer key"}
        connection.request(method, path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/props"), ("POST", "/v1/completions")]
)
def test_while_the_model_loads_everything_says_so(listener, method, path):
    status, answer = call(listener, method, path, {})
    error = json.loads(answer)["error"]

    assert (status, error["code"], error["type"]) == (503, 503, "unavailable_error")


@pytest.mark.parametrize("stream", [True, False])
def test_what_llamacpp_cannot_compute_is_an_error_and_not_the_end(listener, stream):
    listener.model = unable()
    Thread(target=work, args=(listener.model, listener.jobs), daemon=True).start()

    for _ in range(2):
        status, answer = call(
            listener, "POST", "/v1/completions", {"prompt": "hi", "stream": stream}
        )
        error = json.loads(answer)["error"]
        assert (status, error["type"]) == (500, "server_error")
        assert "ended with -3 on 2 tokens" in error["message"]


def test_an_answer_that_breaks_off_ends_with_the_reason_and_without_done(listener):
    listener.model = unable()

    def break_off() -> None:
        job = listener.jobs.get()
        job.events.put(Piece("half"))
        job.events.put(Failed("no more"))

    Thread(target=break_off, daemon=True).start()
    status, answer = call(listener, "POST", "/v1/completions", {"prompt": "hi", "stream": True})
    first, last = (json.loads(line.removeprefix("data: ")) for line in answer.strip().split("\n\n"))

    assert (status, first["choices"][0]["text"]) == (200, "half")
    assert (last["error"]["message"], last["error"]["code"]) == ("no more", 500)
