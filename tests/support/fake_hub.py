"""A hub on 127.0.0.1 that serves one repo, counts what it sends, and fails on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import Self

from tests.support.hub_files import COMMIT, REPO, FakeFile, Faults, Request

PIECE = 16 << 10  # bytes per send


class FakeHub:
    """Serves inside its `with` block. All its attributes may be changed between requests."""

    def __init__(self, files: dict[str, FakeFile | bytes]) -> None:
        """files: content by name; content that is given as bytes is an LFS file."""
        self.files = {
            name: file if isinstance(file, FakeFile) else FakeFile(file)
            for name, file in files.items()
        }
        self.faults = Faults()
        self.commit = COMMIT
        self.requests: list[Request] = []
        self.sent = 0
        """Bytes of files that were written to the sockets."""
        self.signed: dict[str, int] = {}
        self.is_closing = threading.Event()
        self.lock = threading.Lock()
        self.changed = threading.Condition()
        self.busy = 0
        self.open: Counter[str] = Counter()
        self.windows: Counter[int] = Counter()
        self.refused: list[float] = []
        """The times of requests that were refused as one too many."""
        hub = self

        class Handler(FakeHandler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.handle_error = lambda *_: None  # a client may close its connection
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def name(self) -> str:
        """Host and port, as messages to users show them."""
        return urlsplit(self.url).netloc

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for one of the connections that are served at a time."""
        with self.changed:
            self.changed.wait_for(lambda: not self.faults.slots or self.busy < self.faults.slots)
            self.busy += 1
        try:
            yield
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify()

    @contextlib.contextmanager
    def admitted(self, name: str, *, is_range: bool) -> Iterator[bool]:
        """Yields whether the limits allow one more request for a file."""
        faults = self.faults
        key = name if faults.is_per_file else ""
        counts = is_range or not faults.is_for_ranges
        with self.lock:
            window = int(time.monotonic() / faults.window_s)
            self.windows[window] += 1
            is_one = not counts or faults.most is None or self.open[key] < faults.most
            is_one &= faults.per_window is None or self.windows[window] <= faults.per_window
            self.open[key] += is_one and counts
            if not is_one:
                self.refused.append(time.monotonic())
        try:
            yield is_one
        finally:
            with self.lock:
                self.open[key] -= is_one and counts

    def gets(self, name: str = "") -> list[Request]:
        """Requests for file `name`, or for any file."""
        return [
            request
            for request in self.requests
            if request.path.startswith(("/signed/", f"/{REPO}/resolve/"))
            and request.path.partition("?")[0].endswith(name)
        ]

    def info(self) -> dict[str, object]:
        return {
            "id": REPO,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "tags": [],
            "siblings": [
                {"rfilename": name, "size": file.size, "blobId": file.etag[:40]}
                | (
                    {"lfs": {"sha256": file.etag, "size": file.size, "pointerSize": 134}}
                    if file.is_lfs
                    else {}
                )
                for name, file in self.files.items()
            ],
        }

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": file.size, "oid": file.etag[:40]}
            | (
                {"lfs": {"oid": file.etag, "size": file.size, "pointerSize": 134}}
                if file.is_lfs
                else {}
            )
            for name, file in self.files.items()
        ]

    def scope(self) -> list[dict[str, object]]:
        """The files as ModelScope lists them."""
        return [
            {"Path": name, "Size": file.size, "Sha256": hashlib.sha256(file.data).hexdigest()}
            for name, file in self.files.items()
        ]


class FakeHandler(BaseHTTPRequestHandler):
    """Handles one connection to the hub."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def setup(self) -> None:
        # else megabytes that never left this machine's buffers count as sent
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, faults = self.hub, self.hub.faults
        url = urlsplit(self.path)
        seen = Request(
            self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        with hub.lock:
            hub.requests.append(seen)
        path = unquote(url.path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if path.startswith("/api/v1/models/"):
                self.modelscope(path, parse_qs(url.query))
            elif path.startswith("/api/"):
                self.api(path)
            elif match := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
                self.resolve(match[1], match[2])
            elif path.startswith("/signed/"):
                self.signed(path.removeprefix("/signed/"), url.query)
            else:
                self.answer(404, b"")
        del faults

    def answer(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def api(self, path: str) -> None:
        hub, faults = self.hub, self.hub.faults
        if faults.api_status:
            self.answer(faults.api_status.pop(0), b"", Retry_After=0)
        elif faults.gated:
            self.answer(403, b"", X_Error_Code="GatedRepo")
        elif faults.html_api:
            self.answer(200, b"<html>log in</html>", Content_Type="text/html")
        elif not path.startswith(f"/api/models/{REPO}"):
            self.answer(404, b"", X_Error_Code="RepoNotFound")
        else:
            value = hub.tree() if "/tree/" in path else hub.info()
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def modelscope(self, path: str, query: dict[str, list[str]]) -> None:
        if path.endswith("/repo/files"):
            body = json.dumps({"Code": 200, "Data": {"Files": self.hub.scope()}}).encode()
            self.answer(200, body, Content_Type="application/json")
        elif path.endswith("/repo"):
            self.send_file(query["FilePath"][0])
        else:
            self.answer(404, b'{"Code": 404}', Content_Type="application/json")

    def resolve(self, revision: str, name: str) -> None:
        hub, faults = self.hub, self.hub.faults
        if faults.busy > 0:
            faults.busy -= 1
            self.answer(429, b"", Retry_After=1)
        elif faults.html_files:
            self.answer(200, b"<html>log in</html>", Content_Type="text/html")
        elif name not in hub.files:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
        elif faults.to_hub:
            self.answer(308, b"", Location=f"https://huggingface.co{self.path}")
        elif faults.no_commit and revision != "main":
            self.answer(404, b"", X_Error_Code="RevisionNotFound")
        elif faults.data_origin and hub.files[name].is_lfs:
            with hub.lock:
                ticket = f"ticket{len(hub.signed)}"
                hub.signed[ticket] = 0
            location = f"{faults.data_origin}/signed/{name}?ticket={ticket}"
            self.answer(302, b"", Location=location, **self.identity(name))
        else:
            self.send_file(name, **self.identity(name))

    def identity(self, name: str) -> dict[str, object]:
        file = self.hub.files[name]
        if self.hub.faults.nameless:
            return {}
        etag = "0" * len(file.etag) if self.hub.faults.other_version else file.etag
        headers: dict[str, object] = {"X_Repo_Commit": self.hub.commit, "ETag": f'"{etag}"'}
        if file.is_lfs:
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": file.size}
        return headers

    def signed(self, name: str, query: str) -> None:
        hub = self.hub
        with hub.lock:
            hub.signed[query] = uses = hub.signed.get(query, 0) + 1
        if hub.faults.signed_uses is not None and uses > hub.faults.signed_uses:
            self.answer(403, b"expired")
        else:
            self.send_file(name)

    def send_file(self, name: str, **headers: object) -> None:
        with self.hub.admitted(name, is_range="Range" in self.headers) as is_admitted:
            self.send_range(name, headers) if is_admitted else self.refuse()

    def send_range(self, name: str, headers: dict[str, object]) -> None:
        hub, faults = self.hub, self.hub.faults
        file = hub.files[name]
        start, end = 0, file.size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if asked and not faults.no_ranges:
            start, end = int(asked[1]), min(int(asked[2] or file.size - 1) + 1, file.size)
            if start >= file.size:
                return self.answer(416, b"")
            status = 206
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{file.size}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            with hub.slot():
                self.send_body(file, start, end)
        return None

    def refuse(self) -> None:
        """Answer a request that is one too many, as `faults.refusal` says."""
        faults = self.hub.faults
        wait = {} if faults.refusal_wait is None else {"Retry_After": faults.refusal_wait}
        match faults.refusal:
            case int(status):
                self.answer(status, b"no", **wait)
            case "html":
                self.answer(200, b"<html>slow down</html>", Content_Type="text/html")
            case _:
                self.cut(faults.refusal)

    def send_body(self, file: FakeFile, start: int, end: int) -> None:
        hub, faults = self.hub, self.hub.faults
        data = memoryview(file.data)
        wrong = file.size // 2 if faults.flip else -1
        began, sent = time.monotonic(), 0
        while start + sent < end:
            if faults.cut_after is not None and sent >= faults.cut_after:
                return self.cut()
            if faults.stall_after is not None and sent >= faults.stall_after:
                hub.is_closing.wait(60)
                return self.cut()
            at = start + sent
            stops = [end, at + PIECE if faults.rate or faults.cut_after else at + 16 * PIECE]
            stops += [start + n for n in (faults.cut_after, faults.stall_after) if n is not None]
            piece = data[at : min(stop for stop in stops if stop > at)]
            if at <= wrong < at + len(piece):
                piece = memoryview(bytearray(piece))
                piece[wrong - at] ^= 1
            if faults.rate:
                ahead = sent / faults.rate - (time.monotonic() - began)
                if ahead > 0 and hub.is_closing.wait(ahead):
                    return self.cut()
            self.connection.sendall(piece)
            sent += len(piece)
            with hub.lock:
                hub.sent += len(piece)
        return None

    def cut(self, way: str = "") -> None:
        """End the connection at once."""
        self.close_connection = True
        way = way or self.hub.faults.cut_with
        if way == "rst":
            time.sleep(0.02)  # the sent bytes arrive first: the network is cut, not our buffer
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RDWR) if way == "fin" else None
        self.connection.close()
