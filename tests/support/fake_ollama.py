"""A fake Ollama: its API for blobs and new models, as docs/api.md describes it."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class FakeOllama:
    """Keeps blobs and models in memory, and the requests in `asked`."""

    def __init__(self, *, refuses: str = "") -> None:
        """refuses: the error with which it answers a creation."""
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
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
                outer.asked.append(("HEAD", self.path))
                self.reply(200 if self.path.rpartition("/")[2] in outer.blobs else 404)

            def do_POST(self) -> None:
                outer.asked.append(("POST", self.path))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith("/api/blobs/"):
                    self.take(self.path.rpartition("/")[2], body)
                elif self.path == "/api/show":
                    self.reply(200 if json.loads(body)["model"] in outer.models else 404, {})
                elif refuses:
                    self.reply(500, {"error": refuses})
                else:
                    self.create(json.loads(body))

            def take(self, digest: str, body: bytes) -> None:
                if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
                    self.reply(400, {"error": "digest mismatch"})
                    return
                outer.blobs[digest] = body
                self.reply(201)

            def create(self, asked: dict[str, Any]) -> None:
                if missing := [d for d in asked["files"].values() if d not in outer.blobs]:
                    self.reply(400, {"error": f"no blob {missing[0]}"})
                    return
                outer.models[asked["model"]] = asked
                self.reply(200, {"status": "success"})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
