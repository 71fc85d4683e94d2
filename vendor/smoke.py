"""Tests a build: its server decodes a few tokens of a tiny Q4_K model."""

from __future__ import annotations

import http.client
import json
import math
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .process import ending, last_lines, stop
from .report import BuildError
from .tiny import write_tiny_gguf

N_PREDICT = 4  # tokens to decode
READY_S = 120  # a GPU backend compiles its kernels at the first start
ANSWER_S = 120  # for the completion
STOP_S = 5  # from SIGTERM to SIGKILL
EXIT_WAIT_S = 2
NOT_EXECUTABLE = 126  # 126, 127: from the loader; a tool that rejects its options exits with 1
SOCKET_PATH_MAX = 100  # sun_path: 104 bytes on macOS, 108 on Linux, minus the file's name
# Other variables are dropped: LLAMA_ARG_*, AIP_* configure the server, HF_*, proxies a download.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_", "DYLD_", "CUDA_", "NVIDIA_", "VK_", "GGML_")
# Twice this sentence fills a batch of more than 32 rows, which the AMX kernels process at once.
PROMPT = "The quick brown fox jumps over the lazy dog. " * 2


def smoke_test(
    server: Path,
    *,
    env: Mapping[str, str],
    ready_s: float = READY_S,
    answer_s: float = ANSWER_S,
    stop_s: float = STOP_S,
) -> dict[str, Any]:  # Any: a part of build.json
    """Decode a few tokens with `server` and return them with the time taken.

    The server listens on a socket in a private folder, can see no model but the one written here,
    and has ended when this returns or raises. Raises BuildError if it does not decode.
    """
    began = time.monotonic()
    with _private_folder() as folder:
        model, log = folder / "tiny.gguf", folder / "log"
        write_tiny_gguf(model)
        with _running(server, folder, log, env, stop_s) as process:
            try:
                _wait_until_ready(process, folder / "s.sock", ready_s)
                tokens = _complete(folder / "s.sock", answer_s)
            except (OSError, http.client.HTTPException, ValueError) as error:
                broken = isinstance(error, (ConnectionError, http.client.HTTPException))
                exit_text = _exit_text(process) if broken else ""
                raise BuildError(
                    f"the smoke test of `{server}` failed: the server {exit_text or error}; "
                    f"its last lines:\n{last_lines(log)}",
                    hint="report this with the lines above; DECANT_BACKEND=cpu may avoid it",
                ) from error
    return {"tokens": tokens, "seconds": round(time.monotonic() - began, 3)}


def check_starts(tools: Mapping[str, Path], *, env: Mapping[str, str]) -> None:
    """Raise BuildError unless every tool finds its libraries and prints its help."""
    for name, path in tools.items():
        answer = subprocess.run(
            [str(path), "--help"],
            env=scrubbed(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=READY_S,
            check=False,
        )
        if not 0 <= answer.returncode < NOT_EXECUTABLE:
            raise BuildError(
                f"{name} does not start: `{path} --help` {ending(answer.returncode)}\n"
                f"  {answer.stderr.strip()[-500:]}",
            )


def scrubbed(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `env` that a server under test may see."""
    return {name: value for name, value in env.items() if name.startswith(KEPT)}


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder of mode 0700 whose path is short enough for a socket."""
    parent = tempfile.gettempdir()
    if len(f"{parent}/decant-xxxxxxxx/s.sock") > SOCKET_PATH_MAX:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes it private in any parent
    folder = tempfile.mkdtemp(prefix="decant-", dir=parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(
    server: Path, folder: Path, log: Path, env: Mapping[str, str], stop_s: float
) -> Iterator[subprocess.Popen[str]]:
    """Run the server with the tiny model."""
    argv = [str(server), "--host", str(folder / "s.sock"), "-m", str(folder / "tiny.gguf")]
    argv += ["-c", "256", "-np", "1", "-t", "2", "--cache-ram", "0"]
    argv += ["--offline", "--no-ui", "--no-warmup"]
    # As a router's child the server exits when its stdin closes, so it also ends if we are killed.
    extra = {"LLAMA_SERVER_ROUTER_PORT": "1", "LLAMA_CACHE": str(folder)}
    with log.open("w", encoding="utf-8") as out:
        try:
            process = subprocess.Popen(
                argv,
                env=scrubbed(env) | extra,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except OSError as error:
            raise BuildError(f"`{server}` does not start: {error}") from error
    try:
        yield process
    finally:
        stop(process, patience_s=stop_s)


def _wait_until_ready(process: subprocess.Popen[str], path: Path, timeout_s: float) -> None:
    """Return once /health answers 200; raise an OSError if the server ends or the time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConnectionError("ended before it was ready")
        try:
            status, _ = _request(path, "GET", "/health", timeout_s=timeout_s)
        except (FileNotFoundError, ConnectionError, http.client.HTTPException):
            status = 0
        if status == HTTPStatus.OK:
            return
        time.sleep(0.02)
    raise TimeoutError(f"was not ready after {timeout_s:g} s")


def _complete(path: Path, timeout_s: float) -> list[int]:
    """Return the tokens that the server decodes; raise a ValueError if the reply is not valid."""
    body = {
        "prompt": PROMPT,
        "n_predict": N_PREDICT,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "n_probs": 1,
    }
    status, answer = _request(path, "POST", "/completion", body, timeout_s=timeout_s)
    if status != HTTPStatus.OK:
        raise ValueError(f"answered {status}: {answer[:200]!r}")
    reply = json.loads(answer)
    tokens = reply.get("tokens", [])
    if len(tokens) != N_PREDICT:
        raise ValueError(f"decoded {len(tokens)} tokens, not {N_PREDICT}: {answer[:200]!r}")
    logprobs = [each.get("logprob") for each in reply.get("completion_probabilities", [])]
    if not all(
        isinstance(logprob, (int, float)) and math.isfinite(logprob) for logprob in logprobs
    ):
        raise ValueError(f"computed {logprobs} as log probabilities")
    return list(tokens)


def _exit_text(process: subprocess.Popen[str]) -> str:
    """Describe how the server ended, or return an empty string if it still runs."""
    try:
        # A crashing server closes its socket before it exits, as it may dump its core first.
        return ending(process.wait(EXIT_WAIT_S))
    except subprocess.TimeoutExpired:
        return ""


def _request(
    path: Path,
    method: str,
    route: str,
    body: Mapping[str, object] | None = None,
    *,
    timeout_s: float,
) -> tuple[int, bytes]:
    """Make one HTTP exchange over the socket at `path`, and return the status and the body."""
    connection = _SocketConnection(path, timeout_s)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = json.dumps(body).encode() if body is not None else None
        connection.request(method, route, data, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))
