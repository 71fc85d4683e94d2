"""A miniature of llama.cpp's package: an sdist that builds in a second, and an index for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vendor.build import Build
from vendor.host import Cpu, Host
from vendor.index import HTML_PAGE, JSON_PAGE
from vendor.recipe import Recipe, read_recipe
from vendor.report import BuildEvent

if TYPE_CHECKING:
    from typing_extensions import Self

TOP = "mini_llama-1.0"
HOST = Host("Linux", Cpu("x86_64", "Test CPU", frozenset({"avx2", "fma"})), nvidia=False)
SOURCES = {
    "vendor/llama.cpp/CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.14)
        project(mini C)
        set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
        set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
        add_library(ggml-base SHARED base.c)
        add_executable(llama-server server.c)
        target_link_libraries(llama-server ggml-base)
    """,
    "vendor/llama.cpp/base.c": "int answer(void) { return 42; }\n",
    "vendor/llama.cpp/server.c": "int answer(void);\nint main(void) { return answer(); }\n",
    "vendor/llama.cpp/conversion/__init__.py": "",
    "vendor/llama.cpp/conversion/base.py": "NAME = 'mini'\n",
    "llama_cpp/__init__.py": "",
    "LICENSE.md": "MIT\n",
}
RECIPE = """
[source]
project = "Mini.Llama"
version = "1.0"
sdist = "mini_llama-1.0.tar.gz"
sha256 = "{sha256}"
nbytes = {nbytes}
commit = "abc1234"
cmake_root = "vendor/llama.cpp"
[build]
tools = ["llama-server"]
libraries = ["ggml-base"]
[cmake]
CMAKE_BUILD_TYPE = "Release"
CMAKE_BUILD_RPATH_USE_ORIGIN = "ON"
CMAKE_C_COMPILER_WORKS = "ON" # halves the time to configure
CMAKE_C_ABI_COMPILED = "ON"
[backend.cpu]
GGML_CUDA = "OFF"
[backend.cuda]
GGML_CUDA = "ON"
[backend.vulkan]
GGML_VULKAN = "ON"
[backend.metal]
GGML_METAL = "ON"
[keep]
"src/conversion" = "vendor/llama.cpp/conversion"
"python/llama_cpp" = "llama_cpp"
"LICENSE" = "LICENSE.md"
[buildtools.cmake]
minimum = "3.14"
pin = "3.31.10"
[buildtools.ninja]
minimum = "1.8"
pin = "1.13.0"
"""


@dataclass(frozen=True)
class Mini:
    """A recipe, its sdist on disk, and an environment that points to both."""

    recipe: Recipe
    sdist: Path
    env: dict[str, str]


def make_mini(folder: Path, changes: Mapping[str, str] | None = None) -> Mini:
    """A miniature in `folder`, with some of its files replaced."""
    folder.mkdir(exist_ok=True)
    sdist = folder / f"{TOP}.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, text in {**SOURCES, **(changes or {})}.items():
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    data = sdist.read_bytes()
    written = folder / "mini.toml"
    written.write_text(RECIPE.format(sha256=hashlib.sha256(data).hexdigest(), nbytes=len(data)))
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env |= {"DECANT_CACHE": str(folder / "cache"), "DECANT_BACKEND": "cpu"}
    return Mini(read_recipe(written), sdist, env | {"DECANT_LLAMA_SDIST": str(sdist)})


def program(folder: Path, name: str, body: str = "echo made up 1.0") -> Path:
    """An executable in `folder` that runs `body`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def no_smoke(build: Build, env: Mapping[str, str]) -> dict[str, Any]:
    """A smoke test that any build passes."""
    return {"tokens": []}


@dataclass
class Events:
    """Collects events; `on` maps a stage to what happens when it is first reported."""

    on: dict[str, Callable[[], object]] = field(default_factory=dict)
    seen: list[BuildEvent] = field(default_factory=list)

    def __call__(self, event: BuildEvent) -> None:
        self.seen.append(event)
        if action := self.on.pop(event.stage, None):
            action()

    @property
    def stages(self) -> set[str]:
        return {event.stage for event in self.seen}


@dataclass
class FakeIndex:
    """A package index on 127.0.0.1 that serves one file and can misbehave."""

    file_name: str
    data: bytes
    kind: str = JSON_PAGE
    project: str = "mini-llama"
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    """Close the connection after so many bytes of the file: one entry per request."""
    statuses: list[int] = field(default_factory=list)
    """Answer the file's next requests with these errors."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"index": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def page(self) -> bytes:
        link = f"../../files/{self.file_name}"
        if self.kind == JSON_PAGE:
            files = [{"filename": "other-1.0.tar.gz", "url": "../../files/other"}]
            files += [{"filename": self.file_name, "url": link}]
            return json.dumps({"name": self.project, "files": files}).encode()
        other = '<a href="../../files/other-1.0.tar.gz">other-1.0.tar.gz</a>'
        return f'<html>{other}<br/>\n<a href="{link}">{self.file_name}</a></html>'.encode()


class _Handler(BaseHTTPRequestHandler):
    index: FakeIndex
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.index.requests.append((self.path, dict(self.headers)))
        if self.path == f"/simple/{self.index.project}/":
            self.answer(200, {"Content-Type": self.index.kind}, self.index.page())
        elif self.path == f"/files/{self.index.file_name}":
            self.file()
        else:
            self.answer(404, {}, b"")

    def file(self) -> None:
        data = self.index.data
        if self.index.statuses:
            self.answer(self.index.statuses.pop(0), {}, b"")
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if not wanted or not self.index.ranges:
            self.answer(200, {}, data)
        elif start >= len(data):
            self.answer(416, {}, b"")
        else:
            content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, {"Content-Range": content_range}, data[start:])

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if status in (200, 206) and self.path.startswith("/files/") and self.index.break_after:
            body = body[: self.index.break_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


HTML = HTML_PAGE
