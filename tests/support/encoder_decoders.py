"""Encoder-decoder models with an adapter each, and the server that computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.llamacpp.toolchain import scrubbed
from runtime.engine.socket_connection import SocketConnection
from runtime.process.run_dir import RunFolder
from tests.support.processes import wait_until

CHECKOUT = Path(__file__).parents[2]
KEY = "correct horse"
ANSWERS = {
    "the cat": "日本語 🦜 é the cat sat on it",
    "a e i": "ai ea; stop here. no more of this",
    "on the in": "one two three four five six",
}
"""The answers that the MT5's adapter has learned, by prompt."""
KINDS = ("T5", "MT5")
COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
GREEDY = {"temperature": 0}
TALK = [{"role": "user", "content": "th"}]


@dataclass(frozen=True)
class Made:
    """A model in all its forms, in one folder."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def lora(self) -> Path:
        return self.folder / "lora"

    @property
    def gguf(self) -> Path:
        """The base and the adapter, merged, as GGUF."""
        return self.folder / f"{self.folder.name}.gguf"


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    socket: Path

    def send(self, method: str, path: str, body: object = None, **headers: str) -> SocketConnection:
        """Send a request without waiting for the response."""
        connection = SocketConnection(self.socket, 30)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {KEY}"} | headers
        connection.request(method, path, None if body is None else raw, given)
        return connection

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        with self.send(method, path, body, **headers) as connection:
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def post(self, path: str, body: object) -> Any:
        status, answer = self.call("POST", path, body)
        assert status == 200, answer
        return answer

    def text(self, prompt: str, **settings: object) -> str:
        answer = self.post(COMPLETIONS, {"prompt": prompt, **GREEDY, **settings})
        return str(answer["choices"][0]["text"])

    def stream(self, path: str, body: Mapping[str, object]) -> list[Any]:
        """The chunks of a streamed answer, without the final [DONE]."""
        with self.send("POST", path, {**body, "stream": True}) as connection:
            response = connection.getresponse()
            assert response.getheader("Content-Type") == "text/event-stream"
            lines = response.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@contextmanager
def serving(gguf: Path, build: Path, *, context: int = 0) -> Iterator[Served]:
    run_folder = RunFolder()
    folder = run_folder.path
    argv = [
        sys.executable, "-m", "runtime.encoder_decoder", "--socket", str(folder / "s.sock"),
        "-m", str(gguf), "-c", str(context), "-t", "1", "--build", str(build),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=scrubbed(os.environ) | {"LLAMA_API_KEY": KEY},
            start_new_session=True,
        )
    served = Served(process, folder / "s.sock")
    try:
        assert wait_until(lambda: is_ready(served), 20)
        yield served
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        said = (folder / "log").read_text()
        run_folder.remove()
    assert said == ""


def is_ready(served: Served) -> bool:
    assert served.process.poll() is None
    try:
        return served.call("GET", "/health") == (200, {"status": "ok"})
    except OSError:
        return False
