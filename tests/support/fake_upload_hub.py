"""A hub on 127.0.0.1 that takes uploads: repos, commits, large files in one or several parts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import Self

from tests.support.hub_files import FakeFile
from tests.support.upload_files import TOKEN, FakeRepo, UploadFaults, UploadRequest

PIECE = 16 << 10  # bytes per read of a body


class FakeUploadHub:
    """Serves inside its `with` block. All attributes may be changed between requests."""

    def __init__(self, owners: tuple[str, ...] = ("org",)) -> None:
        self.repos: dict[str, FakeRepo] = {}
        self.owners, self.faults = owners, UploadFaults()
        self.stored: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[UploadRequest] = []
        self.lock = threading.Lock()
        self.holds, self.release = threading.Event(), threading.Event()
        self.received = 0
        """Bytes of large files that arrived, whole files or not."""

        class Handler(UploadHandler):
            pass

        Handler.hub = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.server.handle_error = lambda *_: None  # a client may close its connection
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.other = f"http://localhost:{self.server.server_port}"
        """The same server under another name: another origin."""

    def __enter__(self) -> Self:
        serve = {"poll_interval": 0.02}
        threading.Thread(target=self.server.serve_forever, kwargs=serve, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def puts(self) -> list[UploadRequest]:
        return [one for one in self.requests if one.method == "PUT"]

    def contents(self, repo: str) -> dict[str, bytes]:
        """The files of the repo's head."""
        return {name: file.data for name, file in self.repos[repo].files.items()}


class UploadHandler(BaseHTTPRequestHandler):
    """Handles one connection to the hub."""

    protocol_version = "HTTP/1.1"
    hub: FakeUploadHub

    def setup(self) -> None:
        # else a client's delayed ACK makes each answer wait for 40 ms
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def cut(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def do_GET(self) -> None:
        with self.received() as path:
            if self.stopped("api", self.hub.faults.api):
                return
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/([^/]+))?", path):
                self.read_repo(found[1], found[3])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.read_file(*found.groups())
            else:
                self.answer(404, b"")

    def do_POST(self) -> None:
        with self.received() as path:
            commit = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
            statuses = self.hub.faults.commit if commit else self.hub.faults.api
            if path != "/api/validate-yaml" and self.stopped("api", statuses):
                return
            if commit:
                self.commit(commit[1])
            elif path == "/api/repos/create":
                self.create()
            elif path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                self.preupload(found[1])
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.batch()
            elif path == "/verify":
                self.step("verify", lambda: None)
                self.json({})
            elif found := re.fullmatch(r"/complete/(\w+)", path):
                self.complete(found[1])
            else:
                self.answer(404, b"")

    def do_PUT(self) -> None:
        hub, faults = self.hub, self.hub.faults
        cut = faults.cuts.pop(0) if faults.cuts else None
        with self.received(cut) as path:
            if cut is not None:
                self.cut()
            elif faults.put:
                self.answer(faults.put.pop(0), b"")
            elif found := re.fullmatch(r"/store/(\w+)(/(\d+))?", path):
                oid, number = found[1], int(found[3] or 0)
                if number:
                    hub.parts[oid, number] = self.body
                    self.answer(200, b"", ETag=f'"{number}"')
                    return
                if hashlib.sha256(self.body).hexdigest() != oid:
                    self.answer(400, b"another sha256")
                    return

                def keep() -> None:
                    hub.stored[oid] = self.body

                self.step("put", keep)
                self.answer(200, b"")
            else:
                self.answer(404, b"")

    @contextlib.contextmanager
    def received(self, cut: int | None = None) -> Iterator[str]:
        """Read the body, or its first `cut` bytes, and log the request; gives its path."""
        hub = self.hub
        length = int(self.headers.get("Content-Length") or 0)
        wanted = length if cut is None else min(cut, length)
        holds = self.command == "PUT" and hub.faults.hold == "put" and not hub.faults.hold_after
        self.body = self.read_body(wanted // 2 if holds else wanted)
        seen = UploadRequest(
            self.command, self.headers["Host"], self.path, self.headers["Authorization"], self.body
        )
        with hub.lock:
            hub.requests.append(seen)
        if holds:
            self.wait_for_release()
        if len(self.body) < wanted:  # the client left
            self.close_connection = True
        path = unquote(urlsplit(self.path).path) if len(self.body) == wanted else "/left"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            yield path

    def read_body(self, nbytes: int) -> bytes:
        hub, pieces = self.hub, list[bytes]()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while nbytes and (piece := self.rfile.read(min(PIECE, nbytes))):
                pieces.append(piece)
                nbytes -= len(piece)
                if self.command == "PUT":
                    hub.received += len(piece)
                    if hub.faults.rate:
                        hub.release.wait(len(piece) / hub.faults.rate)
        return b"".join(pieces)

    def wait_for_release(self) -> None:
        self.hub.holds.set()
        self.hub.release.wait(60)

    def step(self, name: str, act: Callable[[], object]) -> None:
        """Do one step, and wait before or after it if the faults say so."""
        faults = self.hub.faults
        if faults.hold == name and not faults.hold_after:
            self.wait_for_release()
        with self.hub.lock:
            act()
        if faults.hold == name and faults.hold_after:
            self.wait_for_release()

    def stopped(self, kind: str, statuses: list[int]) -> bool:
        """Answer with a redirect, a fault or a refusal of the token; False to go on."""
        faults = self.hub.faults
        is_api = self.path.startswith("/api/") or ".git/" in self.path
        if faults.redirect and is_api:
            self.answer(307, b"", Location=f"{faults.redirect}{self.path}")
        elif statuses:
            self.answer(statuses.pop(0), b"", X_Error_Message=f"the token {TOKEN} is no good")
        elif is_api and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, b"", X_Error_Message="Invalid credentials in Authorization header")
        else:
            return False
        return True

    def json(self, value: object) -> None:
        more = self.hub.faults.next_page if "/tree/" in self.path else None
        link = {"Link": f'<{more}{self.path}>; rel="next"'} if more else {}
        body = json.dumps(value).encode()
        self.answer(200, body, Content_Type="application/json", **link)

    def answer(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def repo(self, name: str) -> FakeRepo | None:
        if name not in self.hub.repos:
            self.answer(404, b"", X_Error_Code="RepoNotFound")
        return self.hub.repos.get(name)

    def read_repo(self, name: str, commit: str | None) -> None:
        if (repo := self.repo(name)) is None:
            return
        self.step("read", lambda: None)
        if self.hub.faults.gated:
            self.answer(403, b"", X_Error_Code="GatedRepo")
            return
        if commit is None:
            self.json(
                {"id": name, "sha": repo.head, "private": repo.private, "tags": [], "siblings": []}
            )
            return
        self.json(
            [
                {"type": "file", "path": path, "size": file.size, "oid": file.etag[:40]}
                | ({"lfs": {"oid": file.etag, "size": file.size, "pointerSize": 134}}
                   if file.is_lfs else {})
                for path, file in repo.history[commit].items()
            ]
        )  # fmt: skip

    def read_file(self, name: str, commit: str, path: str) -> None:
        if repo := self.repo(name):
            self.answer(200, repo.history[commit][path].data)

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.hub.owners:
            self.answer(403, b"", X_Error_Message="You have no rights in this namespace")
            return
        if name in self.hub.repos:
            self.answer(409, b"", X_Error_Message="You already created this model repo")
            return

        def make() -> None:
            self.hub.repos[name] = FakeRepo(private=asked.get("visibility") == "private")

        self.step("create", make)
        self.json({"url": f"{self.hub.url}/{name}", "name": name})

    def preupload(self, name: str) -> None:
        if (repo := self.repo(name)) is None:
            return
        self.step("preupload", lambda: None)
        asked = json.loads(self.body)
        ignored = repo.files[".gitignore"].data.decode() if ".gitignore" in repo.files else ""
        ignored = asked.get("gitIgnore", ignored)
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".gguf") else "regular",
                        "shouldIgnore": file["path"] in ignored.split(),
                        "oid": old.etag if (old := repo.files.get(file["path"])) else None,
                    }
                    for file in asked["files"]
                ]
            }
        )

    def batch(self) -> None:
        hub, faults = self.hub, self.hub.faults
        self.step("batch", lambda: None)
        asked = json.loads(self.body)["objects"]
        if faults.largest and any(one["size"] > faults.largest for one in asked):
            self.answer(413, b"")
            return
        store = faults.store or hub.url
        objects = []
        for one in asked:
            oid, size = one["oid"], one["size"]
            found: dict[str, object] = {"oid": oid, "size": size}
            if oid not in hub.stored:
                upload: dict[str, object] = {"href": f"{store}/store/{oid}?signature=s3cret"}
                if faults.chunk:
                    count = -(-size // faults.chunk)
                    parts = {str(n): f"{store}/store/{oid}/{n}?signature=s3cret"
                             for n in range(1, count + 1)}  # fmt: skip
                    upload = {
                        "href": f"{hub.url}/complete/{oid}",
                        "header": {"chunk_size": str(faults.chunk), **parts},
                    }
                found["actions"] = {"upload": upload}
                if faults.verify:
                    found["actions"] |= {"verify": {"href": f"{store}/verify"}}
            objects.append(found)
        self.json({"transfer": "basic", "objects": objects})

    def complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        whole = b"".join(self.hub.parts[oid, number] for number in numbers)
        if hashlib.sha256(whole).hexdigest() != oid:
            self.answer(400, b"another sha256")
            return

        def keep() -> None:
            self.hub.stored[oid] = whole

        self.step("put", keep)
        self.json({})

    def commit(self, name: str) -> None:
        if (repo := self.repo(name)) is None:
            return
        faults = self.hub.faults
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if faults.rivals:
            faults.rivals -= 1
            path, data = faults.rival_file
            repo.commit("rival", {path: FakeFile(data, is_lfs=path.endswith(".gguf"))})
        if header["value"]["parentCommit"] != repo.head:
            self.answer(412, b"", X_Error_Message="A commit has happened since")
            return
        changed = {}
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                changed[value["path"]] = FakeFile(base64.b64decode(value["content"]), is_lfs=False)
            elif value["oid"] not in self.hub.stored:
                self.answer(400, b"", X_Error_Message="the object is missing")
                return
            else:
                changed[value["path"]] = FakeFile(self.hub.stored[value["oid"]])
        changed.pop(faults.dropped, None)
        self.step("commit", lambda: repo.commit(header["value"]["summary"], changed))
        if faults.lost:
            faults.lost -= 1
            self.cut()
            return
        url = f"{self.hub.url}/{name}/commit/{repo.head}"
        self.json({"commitUrl": url, "commitOid": repo.head})


def query_of(request: UploadRequest) -> dict[str, list[str]]:
    return parse_qs(urlsplit(request.path).query)
