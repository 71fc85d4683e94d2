"""Runs one engine process on a private socket: starts it, waits for it, and always ends it."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from exporter.core.errors import EngineDiedError, EngineError, TemplateRefusedError
from exporter.core.events import Progress, Report, Step, silent
from exporter.core.paths import size_text
from exporter.inputs.template_process import refuse_runaway
from exporter.llamacpp.toolchain import LAST_LINES, Toolchain, scrubbed
from runtime.engine.chat_format import AS_IT_IS, ChatFormat
from runtime.engine.memory_need import BATCH
from runtime.engine.model_server import DYING_S, Kept, ModelServer
from runtime.engine.saved_prompts import PromptPlan, SavedPrompts
from runtime.engine.socket_connection import SocketConnection
from runtime.process.kept_processes import deepen_stacks, start_kept
from runtime.process.memory_watch import MemoryLimit, MemoryWatch, end_first
from runtime.process.run_dir import RunFolder, has_sockets
from runtime.rpc.protocol import Spread, preflight, rpc_flags

TRIAL_S = 2  # seconds of loading after which the template is tested
READY_S = 600  # seconds for loading; a large model on a slow disk
POLL_S = 0.01  # seconds between looks while loading
GET_S = 5  # seconds for the response to a GET
STOP_S = (1.0, 2.0)  # waits after the first and the second SIGTERM; upstream may ignore one
PING_S = 5  # seconds between pings while a prompt is computed: upstream then sees a SIGTERM
STATE = re.compile(r"^cmd_child_to_router:state:(\{.*\})$", re.MULTILINE)
TEMPLATE_REFUSED = re.compile(r"chat template (?:parsing error|is not supported)")
LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
WAITING = frozenset(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
"""The variables by which a user says how OpenMP's threads wait for each other."""
SPINS = "1000"
"""How often a thread of libgomp looks for work before it sleeps; the default is some 300,000, with
which an engine's threads keep processors busy that other engines need."""
Engine = Literal["llama-server", "seq2seq", "scoring"]
"""`scoring` computes log-likelihoods of texts that are given: `runtime.scoring`."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The model to serve, and how."""

    model: Path
    context: int
    """Tokens; 0: as the model was trained."""
    threads: int
    parallel: int = 1
    adapters: tuple[Path, ...] = ()
    """GGUF adapters, all loaded and none applied: each request sets their scales."""
    projector: Path | None = None
    """llama.cpp's mmproj, which turns images into embeddings."""
    cache_type: str = "f16"
    """The type of cached keys and values."""
    prompt_cache: int = 0
    """Bytes for the caches of earlier prompts; unused with adapters, see `argv`."""
    engine: Engine = "llama-server"
    scales: tuple[float, ...] = ()
    """The adapters' scales if requests cannot set them; empty: all 0."""
    rpc: Spread | None = None
    """The workers that compute some of the layers."""
    chat: ChatFormat = AS_IT_IS
    """How conversations are rendered."""
    extra: tuple[str, ...] = ()
    """Further flags of llama-server."""
    niceness: int = 0
    """Added to this process's niceness; the sum is the engine's."""
    memory: MemoryLimit | None = None
    """The memory that the engine may take; None for any."""
    copies: int | None = None
    """Copies of a slot's state to keep; None for llama-server's default."""
    prompts: PromptPlan | None = None
    """Where the prompts of its slots are kept while it does not run."""
    is_restoring: bool = True
    """Whether it reads these prompts when it starts; otherwise, only `restore` does."""
    use_socket: bool = True
    """Whether to use a Unix socket if the system has them; else a port on the loopback."""


class Server(ModelServer):
    """An engine that runs inside the `with` block and has ended after it.

    It listens in a folder that only this user can enter, gets a scrubbed environment, and ends
    when this process ends, even by SIGKILL.
    """

    def __init__(self, spec: ServerSpec, toolchain: Toolchain, *, report: Report = silent) -> None:
        self.spec, self.toolchain, self.report = spec, toolchain, report
        self.key = secrets.token_hex(16)
        self.folder: RunFolder | None = None
        self.port: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.watch: MemoryWatch | None = None
        self.kept = Kept()
        self.saved: SavedPrompts | None = None
        self.in_flight, self.changed = 0, threading.Condition()

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
            if self.spec.prompts is not None:
                with suppress(OSError):  # the disk is full, or may not be written
                    self.saved = SavedPrompts(self.spec.prompts)
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
            end_first(self.process.pid)
            if self.spec.memory is not None:
                self.watch = MemoryWatch(self.process, self.spec.memory)
            self.wait_until_ready(on_port=on_port)
            if self.watch is not None:
                self.watch.is_ready()
            if self.spec.is_restoring:
                self.restore()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def own_niceness(self) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0) + self.spec.niceness

    def link_adapters(self) -> None:
        """Link the adapters under names without `,` and `:`, which separate llama-server's list."""
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
        is_cpu = self.toolchain.info["backend"] == "cpu"
        fit = "off" if is_cpu or spec.rpc else "on"
        where = ["127.0.0.1", "--port", "0"] if on_port else [str(self.run_folder.socket)]
        argv = [
            str(self.toolchain.tool("llama-server")),
            "--host", *where,
            "-m", str(spec.model.absolute()), "-c", str(spec.context * spec.parallel),
            "-t", str(spec.threads), "-np", str(spec.parallel),
            "-ctk", spec.cache_type, "-ctv", spec.cache_type,
            # earlier prompts are found by their tokens alone: with adapters, the keys and values
            # of another adapter would be reused
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
        if spec.copies is not None:
            argv += ["--ctx-checkpoints", str(spec.copies)]
        if is_cpu and spec.projector is None:  # a picture's tokens belong into one step
            argv += ["-b", str(BATCH)]  # others wait for a step of a long prompt
        if spec.projector is not None:
            argv += ["--mmproj", str(spec.projector.absolute())]
        if spec.chat.template is not None:
            argv += ["--chat-template-file", str(self.template_file)]
        rpc = rpc_flags(spec.rpc) if spec.rpc else []
        saved = self.saved.flags() if self.saved else ()
        return [*argv, *spec.chat.flags, *rpc, *saved, *spec.extra]

    def own_argv(self, module: str) -> list[str]:
        """The command line of an engine that is a module of decant's."""
        spec = self.spec
        return [
            sys.executable, "-m", module,
            "--socket", str(self.run_folder.socket),
            "-m", str(spec.model.absolute()), "-c", str(spec.context),
            "-t", str(spec.threads), "--build", str(self.toolchain.folder),
        ]  # fmt: skip

    def own_env(self) -> dict[str, str]:
        # As a router's child, llama-server exits when its standard input ends.
        env = {
            "LLAMA_API_KEY": self.key,
            "LLAMA_CACHE": str(self.run_folder.path),
            "LLAMA_SERVER_ROUTER_PORT": "1",
        }
        if self.spec.engine != "llama-server":  # it imports our packages from the same places
            env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if not WAITING.intersection(os.environ):
            env["GOMP_SPINCOUNT"] = SPINS
        return env

    def wait_until_ready(self, *, on_port: bool) -> None:
        """Wait until /health answers. Raises EngineError after READY_S, or if the engine dies."""
        began, reported, was_tried = time.monotonic(), -1.0, False
        while (took_s := time.monotonic() - began) < READY_S:
            self.raise_if_dead("while loading")
            if took_s > TRIAL_S and not was_tried:
                was_tried = True
                self.try_template()
            if on_port and self.port is None:
                found = LISTENING.search(self.run_folder.log_text())
                self.port = int(found[1]) if found else None
            if (self.port is not None or not on_port) and self.is_healthy():
                nbytes = self.spec.model.stat().st_size
                self.report(Progress("loading", nbytes, nbytes, "bytes"))
                return
            reported = self.report_progress(reported)
            time.sleep(POLL_S)
        raise EngineError(
            f"`{self.spec.model}` was not loaded after {READY_S} s",
            hint="is the disk very slow, or the machine out of memory?",
        )

    def try_template(self) -> None:
        """Raise ModelError if the template is why loading takes long.

        The engine renders the template while it loads; a runaway one never ends, or fills memory.
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
            return False  # it does not listen yet
        finally:
            connection.close()

    def report_progress(self, reported: float) -> float:
        """Report and return the loaded fraction if the log shows more than the last report."""
        states = STATE.findall(self.run_folder.log_text())
        payload = json.loads(states[-1]).get("payload", {}) if states else {}
        part = payload.get("value", reported)
        if part > reported:
            nbytes = self.spec.model.stat().st_size
            self.report(Progress("loading", int(part * nbytes), nbytes, "bytes"))
        return float(max(part, reported))

    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """Raise EngineDiedError, with the status and the log's end, if the process has ended.

        wait_s: time for a process that has just closed its sockets to end. There is no error for a
        process that `stop` ended, perhaps in another thread.
        """
        process = self.process
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.returncode is None:
            return
        status = process.returncode
        was_refused = TEMPLATE_REFUSED.search(self.run_folder.log_text())
        kind = TemplateRefusedError if was_refused else EngineDiedError
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with {status}"
        if self.watch is not None and self.watch.taken:
            took, most = size_text(self.watch.taken), size_text(self.watch.most)
            how += f", because it took {took} of memory and may take {most},"
        raise kind(
            f"{self.spec.engine} ended {how} {when} `{self.spec.model}`" + self.last_lines(),
            hint="is the file a complete GGUF for this llama.cpp? `decant inspect` shows it",
        )

    def raise_if_gone(self) -> None:
        """Raise EngineDiedError if the process has ended, or its socket was removed."""
        self.raise_if_dead("before answering with")
        if self.port is None and not self.run_folder.socket.exists():
            raise EngineDiedError(
                f"`{self.run_folder.path}` was removed, and the engine's socket with it",
                hint="does a program clean up there? Set TMPDIR to another folder",
            )

    def last_lines(self) -> str:
        lines = filter(None, self.run_folder.log_text().splitlines())
        last = [line for line in lines if not STATE.match(line)][-LAST_LINES:]
        return "; its last lines:\n" + "\n".join(f"  {line}" for line in last) if last else ""

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
        """Count a request in flight, for which `stop` waits."""
        with self.changed:
            self.in_flight += 1
        try:
            yield
        finally:
            with self.changed:
                self.in_flight -= 1
                self.changed.notify_all()

    def restore(self) -> None:
        """Fill unused slots with the prompts that are kept for this engine."""
        if self.saved is not None:
            self.saved.restore(self)

    def stop(self, *, grace_s: float = 0, is_saving: bool = False) -> None:
        """End the process and remove its folder; with `is_saving`, save its prompts first.

        Requests in flight have `grace_s` seconds to finish; then come two SIGTERMs and a SIGKILL.
        """
        saved, self.saved = self.saved, None
        try:
            is_free = saved is not None and saved.has_stopped_reading() and not self.in_flight
            if saved is not None and is_free and is_saving and self.process is not None:
                saved.save(self, self.process.kill)
        finally:
            self.end(grace_s)
            if saved is not None:
                saved.close()

    def end(self, grace_s: float) -> None:
        self.close_kept()
        process, self.process = self.process, None
        if process is not None:
            with self.changed:
                self.changed.wait_for(lambda: not self.in_flight, grace_s)
            assert process.stdin is not None
            # Even after a SIGTERM, a router's child exits only when its input ends.
            process.stdin.close()
            for patience_s in STOP_S:
                if process.poll() is None:
                    process.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(patience_s)
            if process.poll() is None:
                process.kill()
                process.wait()
        if self.folder is not None:
            self.folder.remove()
