"""One engine process over a private socket: started, ready, and gone on every path out."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from exporter.core.errors import EngineDiedError, EngineError, TemplateRefusedError
from exporter.core.events import Progress, Report, Step, silent
from exporter.inputs.template_process import refuse_runaway
from exporter.llamacpp.toolchain import LAST_LINES, Toolchain, scrubbed
from runtime.engine.chat_format import AS_IT_IS, ChatFormat
from runtime.engine.model_server import ModelServer
from runtime.engine.socket_connection import SocketConnection
from runtime.process.kept_processes import deepen_stacks, start_kept
from runtime.process.run_dir import RunFolder, has_sockets
from runtime.rpc.protocol import Spread, preflight, rpc_flags

TRIAL_S = 2  # after which a template is suspected
READY_S = 600  # a large model on a slow disk
POLL_S = 0.01
DYING_S = 0.5
GET_S = 5
STOP_S = (1.0, 2.0)  # waits after the first and the second SIGTERM; upstream may sit out one
PING_S = 5  # between signs of life while a prompt is computed; upstream notices a SIGTERM by them
STATE = re.compile(r"^cmd_child_to_router:state:(\{.*\})$", re.MULTILINE)
TEMPLATE_REFUSED = re.compile(r"chat template (?:parsing error|is not supported)")
LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
Engine = Literal["llama-server", "seq2seq", "scoring"]
"""`scoring` computes log-likelihoods of texts that are given: `runtime.scoring`."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Which model to serve and how."""

    model: Path
    context: int
    """Tokens; 0 takes what the model was trained with."""
    threads: int
    parallel: int = 1
    adapters: tuple[Path, ...] = ()
    """GGUF adapters, all loaded, none applied: each request says which is, and how much."""
    projector: Path | None = None
    """What turns images into embeddings: llama.cpp's mmproj."""
    cache_type: str = "f16"
    """Of keys and values."""
    prompt_cache: int = 0
    """Bytes that earlier prompts may take. Never with adapters: see `argv`."""
    engine: Engine = "llama-server"
    scales: tuple[float, ...] = ()
    """What adapters are applied with where requests cannot say; none is, without it."""
    rpc: Spread | None = None
    """Other machines that compute layers of it."""
    chat: ChatFormat = AS_IT_IS
    """How conversations are rendered."""
    extra: tuple[str, ...] = ()
    """More of llama-server's flags."""
    niceness: int = 0
    """How far behind others it stands for the processor, as `nice` has it."""
    use_socket: bool = True
    """A Unix socket where there are any; else a port on the loopback, and a random key."""


class Server(ModelServer):
    """An engine that is up inside the `with` block and is gone after it.

    It listens in a folder only this user can enter, sees none of the caller's environment, and
    dies when this process does, however that happens and whatever it is doing.
    """

    def __init__(self, spec: ServerSpec, toolchain: Toolchain, *, report: Report = silent) -> None:
        """Store what to start."""
        self.spec, self.toolchain, self.report = spec, toolchain, report
        self.key = secrets.token_hex(16)
        self.folder: RunFolder | None = None
        self.port: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.in_flight = 0
        self.changed = threading.Condition()

    @property
    def run_folder(self) -> RunFolder:
        assert self.folder is not None, "not started"
        return self.folder

    def __enter__(self) -> Self:
        if self.spec.rpc is not None:
            preflight(self.spec.rpc, self.toolchain)
        self.folder = RunFolder()
        deepen_stacks()
        try:
            self.report(Step(f"loading {self.spec.model.name}"))
            self.link_adapters()
            if self.spec.chat.template is not None:
                self.template_file.write_text(self.spec.chat.template, encoding="utf-8")
            on_port = not (self.spec.use_socket and has_sockets(self.folder))
            with self.folder.log.open("wb") as log:
                self.process = start_kept(
                    self.argv(on_port=on_port),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder.path,
                    env=scrubbed(os.environ) | self.own_env(),
                    start_new_session=True,  # Ctrl-C in the terminal is ours to handle
                )
            with suppress(OSError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, self.process.pid, self.own_niceness())
            self.wait_until_ready(on_port=on_port)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def own_niceness(self) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0) + self.spec.niceness

    def link_adapters(self) -> None:
        """Give adapters names without the `,` and `:` at which llama-server cuts its list."""
        for number, adapter in enumerate(self.spec.adapters):
            (self.run_folder.path / f"{number}.gguf").symlink_to(adapter.absolute())

    @property
    def template_file(self) -> Path:
        return self.run_folder.path / "chat_template.jinja"

    def argv(self, *, on_port: bool) -> list[str]:
        if self.spec.engine == "seq2seq":
            return self.own_argv("runtime.encoder_decoder")
        if self.spec.engine == "scoring":
            adapters = [part for path in self.spec.adapters for part in ("--lora", str(path))]
            return [*self.own_argv("runtime.scoring"), *adapters, *self.spec.extra]
        spec = self.spec
        # fitting layers into a GPU loads the model twice; without one there is nothing to fit
        fit = "off" if self.toolchain.info["backend"] == "cpu" or spec.rpc else "on"
        where = ["127.0.0.1", "--port", "0"] if on_port else [str(self.run_folder.socket)]
        argv = [
            str(self.toolchain.tool("llama-server")),
            "--host", *where,
            "-m", str(spec.model.absolute()),
            "-c", str(spec.context * spec.parallel),
            "-t", str(spec.threads),
            "-np", str(spec.parallel),
            "-ctk", spec.cache_type, "-ctv", spec.cache_type,
            # earlier prompts are kept by their tokens alone: with adapters, the wrong one's
            # keys and values would come back
            "--cache-ram", "0" if spec.adapters else str(spec.prompt_cache >> 20),
            # else each new request first waits until all idle slots are copied, one by one
            "--no-cache-idle-slots",
            "--fit", fit, "--no-warmup",
            "--offline", "--no-ui", "--no-slots", "--jinja", "--cors-origins", "localhost",
            "--log-verbosity", "3" if on_port else "2",
            "--sse-ping-interval", str(PING_S), "--timeout", "600",
        ]  # fmt: skip
        if spec.adapters:
            scales = spec.scales or (0.0,) * len(spec.adapters)
            scaled = ",".join(f"{number}.gguf:{scale:g}" for number, scale in enumerate(scales))
            argv += ["--lora-scaled", scaled]
        if spec.projector is not None:
            argv += ["--mmproj", str(spec.projector.absolute())]
        if spec.chat.template is not None:
            argv += ["--chat-template-file", str(self.template_file)]
        rpc = rpc_flags(spec.rpc) if spec.rpc else []
        return [*argv, *spec.chat.flags, *rpc, *spec.extra]

    def own_argv(self, module: str) -> list[str]:
        """What starts an engine of ours."""
        spec = self.spec
        return [
            sys.executable, "-m", module,
            "--socket", str(self.run_folder.socket),
            "-m", str(spec.model.absolute()),
            "-c", str(spec.context),
            "-t", str(spec.threads),
            "--build", str(self.toolchain.folder),
        ]  # fmt: skip

    def own_env(self) -> dict[str, str]:
        # As a router's child, llama-server leaves when its standard input ends.
        env = {
            "LLAMA_API_KEY": self.key,
            "LLAMA_CACHE": str(self.run_folder.path),
            "LLAMA_SERVER_ROUTER_PORT": "1",
        }
        if self.spec.engine != "llama-server":  # it finds our packages where we did
            env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        return env

    def wait_until_ready(self, *, on_port: bool) -> None:
        """Return when /health says so; EngineError, with the log's end, when the engine dies."""
        began, told, was_tried = time.monotonic(), -1.0, False
        while (took_s := time.monotonic() - began) < READY_S:
            self.raise_if_dead("while loading")
            if took_s > TRIAL_S and not was_tried:
                was_tried = True
                self.try_template()
            if on_port and self.port is None:
                found = LISTENING.search(self.run_folder.log.read_text(errors="replace"))
                self.port = int(found[1]) if found else None
            if (self.port is not None or not on_port) and self.is_healthy():
                nbytes = self.spec.model.stat().st_size
                self.report(Progress("loading", nbytes, nbytes, "bytes"))
                return
            told = self.tell_progress(told)
            time.sleep(POLL_S)
        raise EngineError(
            f"`{self.spec.model}` was not loaded after {READY_S} s",
            hint="is the disk very slow, or the machine out of memory?",
        )

    def try_template(self) -> None:
        """Raise ModelError where the template is why loading takes long.

        The engine renders it when it loads, and would never end, or fill the memory.
        """
        template = self.spec.chat.template or self.spec.chat.own
        if template:
            refuse_runaway(template, self.spec.model)

    def is_healthy(self) -> bool:
        connection = self.connect("GET")
        try:
            connection.request("GET", "/health", headers=self.headers())
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False  # not listening yet
        finally:
            connection.close()

    def tell_progress(self, told: float) -> float:
        """Report how much of the model is loaded, where the engine's log says more than `told`."""
        states = STATE.findall(self.run_folder.log.read_text(errors="replace"))
        payload = json.loads(states[-1]).get("payload", {}) if states else {}
        part = payload.get("value", told)
        if part > told:
            nbytes = self.spec.model.stat().st_size
            self.report(Progress("loading", int(part * nbytes), nbytes, "bytes"))
        return float(max(part, told))

    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """EngineDiedError, with how and the log's end, when the process has ended.

        One that has just closed its sockets may take a moment, `wait_s`, until it is gone.
        One that `stop` has ended, perhaps in another thread and only now, has not died.
        """
        process = self.process
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.returncode is None:
            return
        status = process.returncode
        kind = TemplateRefusedError if self.says(TEMPLATE_REFUSED) else EngineDiedError
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with {status}"
        raise kind(
            f"{self.spec.engine} ended {how} {when} `{self.spec.model}`" + self.last_lines(),
            hint="is the file a complete GGUF for this llama.cpp? `decant inspect` shows it",
        )

    def raise_if_gone(self) -> None:
        """EngineDiedError when the process has ended, or cannot be reached any more."""
        self.raise_if_dead("before answering with")
        if self.port is None and not self.run_folder.socket.exists():
            raise EngineDiedError(
                f"`{self.run_folder.path}` was removed, and the engine's socket with it",
                hint="does something clean up there? TMPDIR names another place",
            )

    def says(self, words: re.Pattern[str]) -> bool:
        """Whether the engine's log holds these words."""
        try:
            return words.search(self.run_folder.log.read_text(errors="replace")) is not None
        except FileNotFoundError:  # somebody has cleaned up
            return False

    def last_lines(self) -> str:
        try:
            lines = self.run_folder.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:  # somebody has cleaned up
            return ""
        told = [line for line in lines if line and not STATE.match(line)][-LAST_LINES:]
        return "; its last lines:\n" + "\n".join(f"  {line}" for line in told) if told else ""

    def connect(self, method: str) -> http.client.HTTPConnection:
        timeout_s = None if method == "POST" else GET_S
        if self.port is not None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        return SocketConnection(self.run_folder.socket, timeout_s)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def unreachable(self, error: Exception) -> EngineError:
        self.raise_if_dead("while answering with", wait_s=DYING_S)
        return EngineError(f"{self.spec.engine} does not answer: {error}", hint="try again")

    @contextmanager
    def request(
        self, method: str, route: str, body: bytes | None
    ) -> Iterator[http.client.HTTPResponse]:
        with self.counted(), super().request(method, route, body) as response:
            yield response

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Have `stop` know of a request in flight."""
        with self.changed:
            self.in_flight += 1
        try:
            yield
        finally:
            with self.changed:
                self.in_flight -= 1
                self.changed.notify_all()

    def stop(self, *, grace_s: float = 0) -> None:
        """End the process and remove its folder.

        Requests in flight have `grace_s` seconds to finish; then it is asked twice, then killed.
        """
        process, self.process = self.process, None
        if process is not None:
            with self.changed:
                self.changed.wait_for(lambda: not self.in_flight, grace_s)
            assert process.stdin is not None
            # A router's child waits for its end also after a SIGTERM; with it, it leaves at once.
            process.stdin.close()
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
        if self.folder is not None:
            self.folder.remove()


def lora_vector(scales: Sequence[float]) -> dict[str, object]:
    """What a request to a child with adapters must say: every adapter's scale, by its place.

    An adapter that is not named would keep the scale that another request gave it.
    """
    return {"lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)]}
