"""Asks a running Ollama whether it has a model, and to create one.

The routes are those of docs/api.md in https://github.com/ollama/ollama. A model that is created
this way is a copy: Ollama stores the bytes that are sent, and newer versions rewrite the GGUF.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from exporter.core.errors import OutputError
from exporter.core.events import Progress, Report
from exporter.stores.ollama_names import OllamaName
from exporter.stores.ollama_writer import LinkedBlob, NewModel

PORT = 11434  # Ollama's default
SOON_S = 2  # to say whether it runs
LONG_S = 3600  # to take a large file in, and to rewrite it
LONGEST = 1 << 20  # bytes of an answer that are read
FAILED = 400  # the first status of errors (RFC 9110)


@dataclass(frozen=True, slots=True)
class Address:
    """Where Ollama listens."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout_s)


def ollama_address(env: Mapping[str, str]) -> Address:
    """The address in OLLAMA_HOST, with Ollama's defaults; that of all interfaces is this machine's.

    Raises OutputError for a text that is no address.
    """
    text = env.get("OLLAMA_HOST", "").strip()
    has_scheme = "://" in text
    try:
        parts = urlsplit(text if has_scheme else f"http://{text}")
        usual = {"http": 80, "https": 443}.get(parts.scheme, PORT) if has_scheme else PORT
        host, port = parts.hostname or "127.0.0.1", parts.port or usual
    except ValueError as error:
        raise OutputError(
            f"OLLAMA_HOST is {text!r}, which is no address", hint="such as 127.0.0.1:11434"
        ) from error
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - replaced, never listened on
    return Address("https" if parts.scheme == "https" else "http", here.get(host, host), port)


def sees(address: Address, name: OllamaName) -> bool | None:
    """Whether a running Ollama has a model of this name; None if none runs there."""
    try:
        status, _ = answer_to(address, "POST", "/api/show", {"model": str(name)}, timeout_s=SOON_S)
    except (OSError, http.client.HTTPException):
        return None
    return status < FAILED


def refuse_absent(address: Address, name: OllamaName, *, if_taken: str) -> None:
    """Raise OutputError if no Ollama answers, or the one that does has a model of the name."""
    found = sees(address, name)
    if found is None:
        raise OutputError(
            f"no Ollama answers at {address}", hint="start it, or name its address with OLLAMA_HOST"
        )
    if found:
        raise OutputError(f"Ollama has a model {str(name)!r} already", hint=if_taken)


def create_copy(new: NewModel, address: Address, *, report: Report) -> None:
    """Send the files and let Ollama create the model. Raises OutputError."""
    try:
        for blob in new.linked:
            send(blob, address, report=report)
        status, answer = answer_to(address, "POST", "/api/create", body_of(new), timeout_s=LONG_S)
    except (OSError, http.client.HTTPException) as error:
        raise OutputError(
            f"Ollama at {address} stopped answering: {error}", hint="run the same command again"
        ) from error
    if status >= FAILED or "error" in answer:
        why = answer.get("error", f"status {status}")
        raise OutputError(
            f"Ollama did not create {str(new.name)!r}: {why}", hint="its log says more"
        )


def body_of(new: NewModel) -> dict[str, Any]:
    """The request that creates a model of blobs that were sent."""
    texts = {kind: content.decode() for kind, content in new.texts}
    body: dict[str, Any] = {
        "model": str(new.name),
        "files": {blob.path.name: f"sha256:{blob.sha256}" for blob in new.linked},
        "stream": False,
    }
    body |= {kind: texts[kind] for kind in ("template", "system") if kind in texts}
    if "params" in texts:
        body["parameters"] = json.loads(texts["params"])
    return body


def send(blob: LinkedBlob, address: Address, *, report: Report) -> None:
    """Send a file unless Ollama has it. Raises OutputError if it is not taken."""
    path = f"/api/blobs/sha256:{blob.sha256}"
    connection = address.connection(LONG_S)
    try:
        connection.request("HEAD", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status < FAILED:
            return
        with blob.path.open("rb") as file:
            size = blob.path.stat().st_size
            body = Counted(file, blob.path.name, size, report)
            connection.request("POST", path, body=body, headers={"Content-Length": str(size)})
        answer = connection.getresponse()
        text = answer.read(LONGEST).decode(errors="replace")
    finally:
        connection.close()
    if answer.status >= FAILED:
        raise OutputError(
            f"Ollama at {address} did not take `{blob.path}`: {text[:200] or answer.status}",
            hint="has its disk room for a copy? its log says more",
        )


class Counted:
    """A file that reports how much of it was read."""

    def __init__(self, file: IO[bytes], name: str, total: int, report: Report) -> None:
        self.file, self.name, self.total, self.report = file, name, total, report

    def read(self, count: int = -1) -> bytes:
        content = self.file.read(count)
        done = self.file.tell()
        self.report(Progress(f"sending {self.name}", done, self.total, "bytes"))
        return content


def answer_to(
    address: Address, method: str, path: str, body: Mapping[str, Any], *, timeout_s: float
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON object of an answer; an empty one for other content."""
    connection = address.connection(timeout_s)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        content = answer.read(LONGEST)
    finally:
        connection.close()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = {}
    return answer.status, value if isinstance(value, dict) else {}
