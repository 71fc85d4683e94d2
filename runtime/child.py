"""One llama-server process over a private socket: started, ready, and gone on every path out."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from exporter.core.errors import EngineError
from exporter.core.events import Report, Step, silent
from exporter.toolchain import LAST_LINES, Toolchain, scrubbed

READY_S = 600  # a large model on a slow disk
POLL_S = 0.01
SOCKET_PATH_MAX = 100  # bytes; sun_path holds 104 on macOS and 108 on Linux, with a final NUL
STOP_S = (1.0, 2.0)  # waits after the first and the second SIGTERM; upstream may sit out one


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Which model to serve and how."""

    model: Path
    context: int
    """Tokens; 0 takes what the model was trained with."""
    threads: int
    parallel: int = 1


class Server:
    """A llama-server that is up inside the `with` block and is gone after it.

    It listens on a socket in a folder only this user can enter, sees none of the caller's
    environment, and dies when this process does, however that happens: its standard input
    ends with us.
    """

    def __init__(self, spec: ServerSpec, toolchain: Toolchain, *, report: Report = silent) -> None:
        """Store what to start."""
        self.spec, self.toolchain, self.report = spec, toolchain, report
        self.key = secrets.token_hex(16)
        self.folder = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "s.sock"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def __enter__(self) -> Self:
        self.folder = private_folder()
        try:
            self.report(Step(f"loading {self.spec.model.name}"))
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    self.argv(),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=scrubbed(os.environ) | self.own_env(),
                    start_new_session=True,  # Ctrl-C in the terminal is ours to handle
                )
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def argv(self) -> list[str]:
        spec = self.spec
        # fitting layers into a GPU loads the model twice; without one there is nothing to fit
        fit = "off" if self.toolchain.info["backend"] == "cpu" else "on"
        return [
            str(self.toolchain.tool("llama-server")),
            "--host", str(self.socket),
            "-m", str(spec.model),
            "-c", str(spec.context),
            "-t", str(spec.threads),
            "-np", str(spec.parallel),
            "--fit", fit, "--no-warmup",
            "--offline", "--no-ui", "--no-slots", "--jinja",
            "--sse-ping-interval", "5", "--timeout", "600",
        ]  # fmt: skip

    def own_env(self) -> dict[str, str]:
        # As a router's child, llama-server leaves when its standard input ends.
        return {
            "LLAMA_API_KEY": self.key,
            "LLAMA_CACHE": str(self.folder),
            "LLAMA_SERVER_ROUTER_PORT": "1",
        }

    def wait_until_ready(self) -> None:
        """Return when /health says so; EngineError, with the log's end, when the server dies."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.raise_if_dead("while loading")
            try:
                with self.connect() as connection:
                    connection.request("GET", "/health")
                    if connection.getresponse().status == HTTPStatus.OK:
                        return
            except (OSError, http.client.HTTPException):
                pass  # not listening yet
            time.sleep(POLL_S)
        raise EngineError(
            f"`{self.spec.model}` was not loaded after {READY_S} s",
            hint="is the disk very slow, or the machine out of memory?",
        )

    def raise_if_dead(self, when: str) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            return
        status = self.process.returncode
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with {status}"
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise EngineError(
            f"llama-server ended {how} {when} `{self.spec.model}`; its last lines:\n"
            + "\n".join(f"  {line}" for line in lines),
            hint="is the file a complete GGUF for this llama.cpp? `decant inspect` shows it",
        )

    def connect(self, *, timeout_s: float | None = 5) -> SocketConnection:
        return SocketConnection(self.socket, timeout_s)

    def request(self, route: str, body: Mapping[str, object]) -> http.client.HTTPResponse:
        """POST `body` and return the response, once its head is there."""
        connection = self.connect(timeout_s=None)
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.key}",
            "Connection": "close",  # so that the response closes the socket at its end
        }
        try:
            connection.request("POST", route, json.dumps(body).encode(), headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.raise_if_dead("while answering with")
            raise EngineError(f"llama-server does not answer: {error}", hint="try again") from error

    def stop(self) -> None:
        """End the process, by force if it must be, and remove its folder."""
        process, self.process = self.process, None
        if process is not None:
            for patience_s in STOP_S:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(patience_s)
                    except subprocess.TimeoutExpired:
                        continue
            if process.poll() is None:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)


def private_folder() -> Path:
    """A new folder that only this user can enter, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="decant-"))
    if len(str(folder / "s.sock")) > SOCKET_PATH_MAX:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="decant-", dir="/tmp"))
    return folder


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        """Connect at the first request."""
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
