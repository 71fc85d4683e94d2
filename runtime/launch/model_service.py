"""The server that a tool asks: one that runs already, or `decant serve` started for the tool."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any
from urllib.parse import quote

from exporter.core.errors import EngineError, SpaceError, UnsupportedError
from exporter.core.events import Note, Report, Step
from exporter.core.near_names import did_you_mean
from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.adapters import Adapter
from runtime.engine.memory_fit import halves
from runtime.engine.openai_client import get_json, listed, read_object, refused
from runtime.engine.opened_model import open_model
from runtime.engine.purpose import refuse_without_answers
from runtime.engine.remote import Remote
from runtime.gateway.catalog import OWNER
from runtime.gateway.scheduling.placement import Room, choose_slots
from runtime.gateway.settings import Settings
from runtime.launch.coding_tools import KEY_VARIABLE, WANTED_CONTEXT, Endpoint
from runtime.process.kept_processes import start_kept

PROBE_S = 2  # seconds for a program at the default port to answer
PARALLEL = 2  # answers at once: tools ask for titles and summaries beside the conversation
GRACE_S = 2  # seconds for answers to finish when the tool has ended
END_S = 15  # seconds for the server to end after that
SHOWN = 10  # models listed in an error


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine, for which a server is started."""

    path: Path
    adapter: Adapter | None
    context: int | None
    """Tokens of one conversation; None leaves it to the server."""

    def arguments(self) -> list[str]:
        """The arguments of `decant serve`, with absolute paths."""
        found = [str(self.path.absolute())]
        if self.adapter is not None:
            found += ["--adapter", f"{self.adapter.name}={self.adapter.path.absolute()}"]
        if self.context is not None:
            found += ["--ctx", str(self.context)]
        return found


def local_model(
    path: Path, adapter: Adapter | None, context: int | None, toolchain: Toolchain
) -> LocalModel:
    """A model with a context for tools: as asked for, else the largest that fits the memory.

    Raises UnsupportedError for a model without conversations, and the errors of reading it.
    """
    model = open_model(path, (adapter,) if adapter else ())
    refuse_without_answers(model.header)
    if not model.can_chat and not any(model.own):
        raise UnsupportedError(
            f"`{path}` has no chat template, and tools send conversations",
            hint="give it one: decant serve MODEL --chat-template NAME; then launch with --url",
        )
    if context is None:
        for tokens in halves(WANTED_CONTEXT):
            with suppress(SpaceError):
                settings = Settings(context=tokens, parallel=PARALLEL)
                context = choose_slots("generate", model, settings, Room(toolchain))[1].context
                break
    return LocalModel(path, adapter, context)


class Probe(Remote):
    """A server that may be any program."""

    def connect(self, method: str) -> HTTPConnection:
        connection = super().connect(method)
        connection.sock.settimeout(PROBE_S)
        return connection


def endpoint_at(remote: Remote, model: str) -> Endpoint:
    """The model on the `decant serve` at an address, loaded. Raises EngineError without it."""
    try:
        entries = listed(get_json(remote, "/v1/models").get("data"))
    except EngineError as error:
        hint = f"start it with `decant serve {model}`, and set {KEY_VARIABLE} if it has a key"
        raise EngineError(error.message, hint=hint) from error
    names = [str(one.get("id")) for one in entries]
    if not is_ours(entries):
        raise EngineError(f"{remote} is no `decant serve`", hint="is the address right?")
    if find(remote, model) is None:
        otherwise = f"it lists {', '.join(names[:SHOWN])}"
        advice = did_you_mean(model, names, otherwise, most=3)
        raise EngineError(f"{remote} has no model {model!r}", hint=advice)
    return loaded(remote, model)


def endpoint_here(port: int, model: str, key: str) -> Endpoint | None:
    """The model on the `decant serve` at a port of this machine, loaded; None without it.

    Raises EngineError if the model does not load.
    """
    probe = Probe("http", "127.0.0.1", port, "", key or None)
    try:
        is_there = is_ours(listed(get_json(probe, "/v1/models").get("data")))
        if not is_there or find(probe, model) is None:
            return None
    except EngineError:
        return None
    return loaded(Remote("http", "127.0.0.1", port, "", key or None), model)


def is_ours(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list of models is decant's."""
    return any(one.get("owned_by") == OWNER for one in entries)


def find(remote: Remote, model: str) -> dict[str, Any] | None:
    """A model's entry on a server; None if it is unknown there. Raises EngineError."""
    with remote.get(f"/v1/models/{quote(model)}") as response:
        return read_object(response) if response.status == HTTPStatus.OK else None


def loaded(remote: Remote, model: str) -> Endpoint:
    """Have the server load a model, and return it with its context. Raises EngineError."""
    # in Ollama's API a request without a prompt loads the model
    with remote.post("/api/generate", {"model": model, "stream": False}) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
    entry = find(remote, model) or {}
    status = entry.get("status")
    context = status.get("context") if isinstance(status, Mapping) else None
    if not isinstance(context, int):
        raise EngineError(f"{remote} has unloaded {model!r}", hint="try again")
    return Endpoint(str(remote), model, context, remote.key or "")


@contextmanager
def started(model: LocalModel, key: str, log: Path, *, report: Report) -> Iterator[Endpoint]:
    """Start `decant serve` for one model on a free port, and end it when the block ends.

    log: receives what the server prints. Raises EngineError if it does not start.
    """
    report(Step(f"starting decant serve {model.path.name}"))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = start_kept(
            [sys.executable, "-m", "exporter", "serve", *model.arguments(), *OPTIONS],
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            start_new_session=True,  # the terminal's Ctrl-C is for the tool
            cwd="/",  # a module in the user's folder must not be taken for one of decant's
            env=environment(key),
        )
    try:
        url, names = announced(process, log)
        remote = replace(LOOPBACK, port=int(url.rpartition(":")[2]), key=key or None)
        try:
            endpoint = loaded(remote, names[-1])
        except EngineError as error:
            raise EngineError(error.message, hint=f"the server's log: `{log}`") from error
        report(Note(f"{endpoint.model} on {url}, {endpoint.context} tokens of context"))
        yield endpoint
    finally:
        report(Step("ending the server"))
        end(process)


OPTIONS = (
    "--port", "0", "--json", "--quiet", "--ttl", "0",
    "--parallel", str(PARALLEL), "--grace", f"{GRACE_S}s",
)  # fmt: skip
"""Options of a server for one tool."""
LOOPBACK = Remote("http", "127.0.0.1", None, "")


def environment(key: str) -> dict[str, str]:
    """The server's environment: this package can be imported, and the key is this one or none."""
    found = dict(os.environ)
    paths = [str(Path(__file__).parents[2]), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    found.pop(KEY_VARIABLE, None)
    return found | ({KEY_VARIABLE: key} if key else {})


def announced(process: Popen[bytes], log: Path) -> tuple[str, list[str]]:
    """The address and the models that the server prints. Raises EngineError if it ends first."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip() == b"}":
            found = json.loads(b"".join(lines))
            return str(found["url"]), [str(name) for name in found["models"]]
    process.wait()
    text = log.read_text(errors="replace").strip()
    what, _, hint = text.rpartition("error: ")[2].partition("\n\nhint: ")
    raise EngineError(
        f"decant serve ended: {what or process.returncode}", hint=hint or f"its log: `{log}`"
    )


def end(process: Popen[bytes]) -> None:
    """Let the server finish its answers, then end it."""
    process.terminate()
    try:
        process.wait(GRACE_S + END_S)
    except TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
