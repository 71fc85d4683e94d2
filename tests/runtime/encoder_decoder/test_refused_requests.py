"""Encoder-decoder models served: what is no request, or a wrong one, is told and harms nothing."""

from __future__ import annotations

import json
import socket

import pytest

from runtime.engine.socket_connection import SocketConnection
from tests.support.encoder_decoders import ANSWERS, CHAT, COMPLETIONS, GREEDY, KEY, TALK

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

WRONG: list[tuple[str, object, str]] = [
    (COMPLETIONS, b"{", "not valid JSON"),
    (COMPLETIONS, b"", "not valid JSON"),
    (COMPLETIONS, b'{"prompt": "\xff"}', "not valid UTF-8"),
    (COMPLETIONS, b'{"prompt": "\\ud800"}', "not valid UTF-8"),
    (COMPLETIONS, b'{"prompt": "a", "unheard_of": NaN}', "NaN"),
    (COMPLETIONS, b'{"prompt": "a", "temperature": Infinity}', "Infinity"),
    (COMPLETIONS, b'{"prompt": "a", "temperature": 1e400}', "`temperature`"),
    (COMPLETIONS, b"[" * 200_000, "nested too deeply"),
    (COMPLETIONS, b"[1]", "a JSON object"),
    (COMPLETIONS, b'{"seed": ' + b"9" * 9000 + b"}", "not valid JSON"),
    (COMPLETIONS, {}, "`prompt`"),
    (COMPLETIONS, {"prompt": 5}, "`prompt`"),
    (COMPLETIONS, {"prompt": []}, "`prompt`"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "`prompt`"),
    (COMPLETIONS, {"prompt": [1, 10_000]}, "from 0 to"),
    (COMPLETIONS, {"prompt": [-1]}, "from 0 to"),
    (COMPLETIONS, {"prompt": [True]}, "`prompt`"),
    (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "`temperature`"),
    (COMPLETIONS, {"prompt": "a", "temperature": -1}, "`temperature`"),
    (COMPLETIONS, {"prompt": "a", "top_k": 1.5}, "`top_k`"),
    (COMPLETIONS, {"prompt": "a", "top_p": 2}, "from 0 to 1"),
    (COMPLETIONS, {"prompt": "a", "repeat_penalty": 0}, "`repeat_penalty`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": "many"}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": -2}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**30}, "`max_tokens`"),
    (COMPLETIONS, {"prompt": "a", "seed": 2**32}, "`seed`"),
    (COMPLETIONS, {"prompt": "a", "stop": [1]}, "`stop`"),
    (COMPLETIONS, {"prompt": "a", "stream": "yes"}, "`stream`"),
    (COMPLETIONS, {"prompt": "a", "stream_options": []}, "`stream_options`"),
    (COMPLETIONS, {"prompt": "a", "lora": [{"id": 0, "scale": 0.5}]}, "`lora`"),
    (COMPLETIONS, {"prompt": "a", "lora": 5}, "`lora`"),
    (COMPLETIONS, {"prompt": "a", "n": 2}, "`n`"),
    (COMPLETIONS, {"prompt": "a", "grammar": "root ::= x"}, "`grammar`"),
    (COMPLETIONS, {"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {}, "`messages`"),
    (CHAT, {"messages": "hi"}, "`messages`"),
    (CHAT, {"messages": ["hi"]}, "`messages`"),
    (CHAT, {"messages": [{"role": "system", "content": "x"}]}, "from the user"),
    (CHAT, {"messages": [{"content": "x"}]}, "`role`"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "`content`"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    (CHAT, {"messages": TALK, "tools": [{"type": "function"}]}, "`tools`"),
    ("/tokenize", {"content": 5}, "`content`"),
    ("/tokenize", {"content": "a", "with_pieces": 1}, "`with_pieces`"),
    ("/detokenize", {"tokens": "a"}, "`tokens`"),
    ("/detokenize", {"tokens": [10_000]}, "from 0 to"),
]


@pytest.mark.parametrize(("path", "body", "said"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong_and_harms_nothing(taught, path, body, said):
    status, answer = taught.call("POST", path, body)

    assert (status, answer["error"]["code"]) == (400, 400)
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]
    assert "Traceback" not in answer["error"]["message"]
    assert taught.call("GET", "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("GET", "/v1/models", {"Authorization": ""}, 401, "authentication_error"),
        ("GET", "/v1/models", {"Authorization": f"Bearer {KEY}x"}, 401, "authentication_error"),
        ("GET", "/v1/models", {"Authorization": "Bearer é"}, 401, "authentication_error"),
        ("POST", COMPLETIONS, {"Authorization": "Bearer "}, 401, "authentication_error"),
        ("GET", "/nowhere", {"Authorization": ""}, 401, "authentication_error"),
        ("GET", "/nowhere", {}, 404, "not_found_error"),
        ("POST", "/v1/../health", {}, 404, "not_found_error"),
        ("GET", COMPLETIONS, {}, 405, "invalid_request_error"),
        ("DELETE", "/v1/models", {}, 405, "invalid_request_error"),
        ("BREW", "/health", {}, 405, "invalid_request_error"),
        ("GET", "/health", {"Content-Length": "-5"}, 400, "invalid_request_error"),
        ("POST", COMPLETIONS, {"Content-Length": str(17 << 20)}, 413, "invalid_request_error"),
        ("POST", COMPLETIONS, {"Transfer-Encoding": "chunked"}, 411, "invalid_request_error"),
    ],
)
def test_every_refusal_has_its_status_and_openais_form(taught, method, path, headers, status, kind):
    found, answer = taught.call(method, path, None, **headers)

    assert (found, answer["error"]["code"], answer["error"]["type"]) == (status, status, kind)
    assert answer["error"]["message"]


def test_health_needs_no_key_and_a_key_may_stand_in_the_other_header(taught):
    assert taught.call("GET", "/health", Authorization="") == (200, {"status": "ok"})
    assert taught.call("GET", "/props", **{"Authorization": "", "X-Api-Key": KEY})[0] == 200


def test_a_body_that_is_too_large_is_refused_to_who_sends_it_all(taught):
    status, answer = taught.call("POST", COMPLETIONS, b" " * ((16 << 20) + 1))

    assert (status, str(16 << 20) in answer["error"]["message"]) == (413, True)
    assert taught.call("POST", COMPLETIONS, b" " * (16 << 20))[0] == 400  # read, and no JSON


def test_a_connection_is_kept_after_answers_and_refusals(taught):
    with SocketConnection(taught.socket, 5) as connection:
        statuses = []
        for key in (KEY, "wrong", KEY):
            headers = {"Authorization": f"Bearer {key}"}
            body = json.dumps({"prompt": "a e i", **GREEDY})
            connection.request("POST", COMPLETIONS, body, headers)
            used = connection.sock
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)

            assert connection.sock is used is not None

    assert statuses == [200, 401, 200]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff garbage\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        f"POST /tokenize HTTP/1.1\r\nX-Api-Key: {KEY}\r\nContent-Length: 50\r\n\r\n{{".encode(),
        b"POST /v1/completions HTTP/1.1\r\n",
        b"",
    ],
)
def test_what_is_no_request_harms_nothing(taught, sent):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(taught.socket))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block

    assert b"Traceback" not in answer
    assert not answer or b'{"error": ' in answer
    assert taught.text("a e i") == ANSWERS["a e i"]
