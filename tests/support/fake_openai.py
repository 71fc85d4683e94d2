"""A fake remote server with OpenAI's API, whose answers a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class OpenAIServer:
    """Answers every chat with the same pieces; keeps the requests in `asked`."""

    def __init__(
        self,
        pieces: Sequence[str],
        *,
        thoughts: Sequence[str] = (),
        key: str | None = None,
        whole: object = None,
        gate: threading.Event | None = None,
    ) -> None:
        """Bind a port; the server answers inside its `with` block.

        gate: each answer waits for it before its last piece.
        """
        self.pieces, self.thoughts, self.key = pieces, thoughts, key
        self.listing = json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode()
        self.whole, self.gate = whole, gate
        self.asked: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def is_let_in(self) -> bool:
                if outer.key in (None, self.headers.get("Authorization", "")[7:]):
                    return True
                self.reply(401, b'{"error": {"message": "wrong key"}}')
                return False

            def do_GET(self) -> None:
                if self.is_let_in():
                    self.reply(200, outer.listing)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.is_let_in():
                    outer.asked.append(body)
                    outer.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        serve = self.server.serve_forever
        self.thread = threading.Thread(target=serve, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: Any) -> None:  # a Handler
        if self.whole is not None:
            handler.reply(200, json.dumps(self.whole).encode())
            return
        if self.gate is None:
            handler.reply(200, self.stream(), "text/event-stream")
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        *events, last, stop, done = self.stream().split(b"\n\n")[:-1]
        handler.wfile.write(b"".join(event + b"\n\n" for event in events))
        self.gate.wait(60)
        with suppress(OSError):  # the client may have left
            handler.wfile.write(b"\n\n".join((last, stop, done, b"")))

    def stream(self) -> bytes:
        deltas = [{"reasoning_content": text} for text in self.thoughts]
        deltas += [{"content": text} for text in self.pieces]
        chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        return b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in chunks) + b"data: [DONE]\n\n"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
