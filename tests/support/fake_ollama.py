"""A fake Ollama: its API for blobs and new models, as docs/api.md describes it."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class FakeOllama(ThreadingHTTPServer):
    """Keeps blobs and models in memory, and the requests in `asked`."""

    def __init__(self, *, refuses: str = "") -> None:
        """refuses: the error with which it answers a creation."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuses = refuses
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: FakeOllama
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, value: object = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.server.asked.append(("HEAD", self.path))
        self.reply(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_POST(self) -> None:
        self.server.asked.append(("POST", self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            self.take(self.path.rpartition("/")[2], body)
        elif self.path == "/api/show":
            self.reply(200 if json.loads(body)["model"] in self.server.models else 404, {})
        elif self.server.refuses:
            self.reply(500, {"error": self.server.refuses})
        else:
            self.create(json.loads(body))

    def take(self, digest: str, body: bytes) -> None:
        """Store a blob whose hash is that of the address."""
        if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
            self.reply(400, {"error": "digest mismatch"})
            return
        self.server.blobs[digest] = body
        self.reply(201)

    def create(self, asked: dict[str, Any]) -> None:
        """Store a model whose blobs are all here."""
        missing = [digest for digest in asked["files"].values() if digest not in self.server.blobs]
        if missing:
            self.reply(400, {"error": f"no blob {missing[0]}"})
            return
        self.server.models[asked["model"]] = asked
        self.reply(200, {"status": "success"})
