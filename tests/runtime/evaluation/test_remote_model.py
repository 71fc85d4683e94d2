"""A server of OpenAI's API as one of the models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from exporter.core.errors import EngineError
from runtime.engine.remote import parse_url
from runtime.evaluation import remote_model
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.remote_model import RemoteModel, named_wait_s
from tests.support.fake_openai import OpenAIServer

ASKS = [{"role": "user", "content": "q"}]


def saying(text: str) -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


class Busy(OpenAIServer):
    """Refuses the first requests."""

    def __init__(self, status: int, times: int) -> None:
        super().__init__((), whole=saying("yes"))
        handler = self.server.RequestHandlerClass
        answer = handler.do_POST
        left = [times]

        def do_POST(request) -> None:  # noqa: N802 - http.server calls it by this name
            if left[0]:
                left[0] -= 1
                request.rfile.read(int(request.headers["Content-Length"]))
                request.reply(status, b'{"error": {"message": "busy"}}')
            else:
                answer(request)

        handler.do_POST = do_POST


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status, monkeypatch):
    monkeypatch.setattr(remote_model, "WAITS_S", (0.01, 0.01, 0.01))
    with Busy(status, 3) as server:
        model = RemoteModel("m", parse_url(server.url, None), "first")

        assert model.answer(ASKS, AnswerSettings()).answer == "yes"

    with Busy(status, 4) as server, pytest.raises(EngineError, match=str(status)):
        RemoteModel("m", parse_url(server.url, None), "first").answer(ASKS, AnswerSettings())


def test_the_waiting_that_a_server_names_has_an_end():
    assert named_wait_s("7") == 7
    assert named_wait_s("99999") == 120
    assert named_wait_s("Wed, 21 Oct 2026 07:28:00 GMT") == 0
    assert named_wait_s(None) == 0


@pytest.mark.lasting
def test_a_server_from_the_command_line_is_given_its_key_and_asked_greedily(tmp_path):
    data, key = tmp_path / "data.jsonl", tmp_path / "key"
    rows = [{"question": f"q{n}", "answer": "yes"} for n in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    key.write_text("secret")
    key.chmod(0o600)
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "home")}
    with OpenAIServer((), whole=saying("yes"), key="secret") as server:
        argv = [sys.executable, "-m", "exporter", "eval", "--url", server.url, "--data", str(data)]
        argv += ["--key-file", str(key), "--json", "--quiet"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["scores"]["first"]["exact_match"]["value"] == 1.0
    assert "loss" not in found["scores"]["first"]
    assert any("measured by its answers only" in note for note in found["data"]["notes"])
    answered = [body for body in server.asked if "messages" in body]
    assert len(answered) == 8
    assert all(body["temperature"] == 0 and body["model"] == "first" for body in server.asked)
    assert b"secret" not in (tmp_path / "home/decant/evaluations/outcomes.sqlite").read_bytes()
