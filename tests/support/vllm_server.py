"""vLLM, started by a folder's own `serve.sh`, and its answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.support.processes import descendants
from tests.support.vllm_environment import vllm_environment

ARGUMENTS = ("--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256")
START_S = 400  # on a busy machine; a quiet one takes 60
KV_GIB = 1  # for keys and values
ALONE = {
    "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the machine's other processes keep their share
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Settings by which it takes little memory, listens on this machine only, and reports to nobody."""


@dataclass
class VllmServer:
    """A running vLLM."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, path: str, body: object | None = None) -> tuple[int, Any]:
        """The status, and the answer from its JSON, or its text."""
        with closing(HTTPConnection("127.0.0.1", self.port, 120)) as connection:
            method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return response.status, json.loads(text) if is_json and text else text

    def says(self, model: str, prompt: str, *, tokens: int = 24) -> str:
        """The greedy answer to a prompt."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens}
        status, found = self.ask("/v1/chat/completions", body)
        assert status == 200, found
        return str(found["choices"][0]["message"]["content"])

    def likelihoods(self, model: str, ids: Sequence[int]) -> list[float]:
        """How likely each token is after those before it, in nats; of the first there is none."""
        body = {
            "model": model, "prompt": list(ids), "echo": True, "logprobs": 1, "max_tokens": 1,
            "temperature": 0,
        }  # fmt: skip
        status, found = self.ask("/v1/completions", body)
        assert status == 200, found
        values = found["choices"][0]["logprobs"]["token_logprobs"]
        return [float(value) for value in values[1 : len(ids)]]

    def load(self, name: str, folder: Path) -> tuple[int, str]:
        """Load an adapter while it runs; the status, and its words."""
        body = {"lora_name": name, "lora_path": str(folder)}
        status, found = self.ask("/v1/load_lora_adapter", body)
        return status, found if isinstance(found, str) else str(found["error"]["message"])

    def unload(self, name: str) -> int:
        return self.ask("/v1/unload_lora_adapter", {"lora_name": name})[0]

    def models(self) -> dict[str, str | None]:
        """The models that it lists, with the base of each adapter."""
        _, found = self.ask("/v1/models")
        return {one["id"]: one["parent"] for one in found["data"]}

    def is_ready(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def pids(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]


@contextmanager
def vllm_serving(
    folder: Path, log: Path, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[VllmServer]:
    """Run the folder's serve.sh on a free port; ended after the block, with all that it started."""
    path = f"{vllm_environment() / 'bin'}{os.pathsep}{os.environ['PATH']}"
    cache = {"VLLM_CACHE_ROOT": str(log.parent / "vllm-cache")}
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(folder / "serve.sh"), "--port", str(port), *ARGUMENTS, *arguments],
            env={**os.environ, **ALONE, **cache, **(env or {}), "PATH": path},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    server = VllmServer(process, port, log)
    try:
        wait_for(server)
        yield server
    finally:
        end(process)


def wait_for(server: VllmServer) -> None:
    deadline = time.monotonic() + START_S
    while not server.is_ready():
        is_over = server.process.poll() is not None or time.monotonic() > deadline
        assert not is_over, f"vLLM did not start:\n{server.log.read_text()[-4000:]}"
        time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server as Ctrl-C does, and after some time the whole group of processes."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # its own session's: nobody else's
    except ProcessLookupError:
        pass
    process.wait()


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
