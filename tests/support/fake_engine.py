"""A fake engine: computes nothing, and misbehaves as the file MODEL.fake beside its model says.

It listens on llama-server's socket. MODEL.fake is JSON, with these keys, all optional:

    load_s, takes_s    the seconds that it takes to load, and to answer
    stubborn           whether it never ends its work, even if the client leaves
    stays              whether it keeps running when its standard input ends
    deaf               a path: while the file exists, it answers nothing
    stuck              a path: while the file exists, it answers no GET but /health
    holds              a path: while the file exists, it answers no POST
    asked              a path: it appends each request to this file
    names              whether it answers a completion with the names of the applied adapters
    load_mib, mib      the memory that it takes to load, and for a prompt with "large" in it
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from types import SimpleNamespace
from typing import Any


def toolchain(folder: Path) -> Any:
    """A toolchain whose llama-server is this file."""
    tool = folder / "fake-llama-server"
    program = shlex.join([sys.executable, "-I", "-S", __file__])
    tool.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    tool.chmod(0o755)
    return SimpleNamespace(tool=lambda name: tool, info={"backend": "cpu"}, folder=folder)


def behave(model: Path, **how: object) -> Path:
    """Write MODEL.fake, which says how the model's engine behaves."""
    model.with_name(f"{model.name}.fake").write_text(json.dumps(how))
    return model


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    how: dict[str, Any]
    lock = threading.Lock()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def address_string(self) -> str:
        return ""

    def do_GET(self) -> None:
        self.wait_if_deaf()
        if self.path != "/health":
            self.wait_while("stuck")
        self.reply({"status": "ok"})

    def do_POST(self) -> None:
        if self.path == "/apply-template":  # the gateway asks this at a load: it is no request
            self.reply({"prompt": ""})
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path := self.how.get("asked"):
            with self.lock, Path(path).open("a") as file:
                file.write(json.dumps(body) + "\n")
        self.wait_if_deaf()
        if "large" in str(body.get("prompt")):
            take_memory(self.how.get("mib", 0))
        self.wait_while("holds")
        time.sleep(self.how.get("takes_s", 0))
        if self.how.get("stubborn"):
            time.sleep(600)
        if body.get("stream"):
            self.stream(self.answer(body)["choices"])
        else:
            self.reply(self.answer(body))

    def stream(self, choices: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for choice in choices:
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        if self.how.get("names"):
            return {"choices": [{"index": 0, "text": applied(body)}], "usage": usage}
        if isinstance(texts := body.get("input"), list):
            data = [{"index": n, "embedding": [float(len(t))]} for n, t in enumerate(texts)]
            return {"object": "list", "data": data, "usage": usage}
        if isinstance(texts := body.get("documents"), list):
            found = [{"index": n, "relevance_score": float(len(t))} for n, t in enumerate(texts)]
            found.sort(key=lambda one: -one["relevance_score"])
            return {"results": found[: body.get("top_n")], "usage": usage}
        prompts = body.get("prompt")
        prompts = prompts if isinstance(prompts, list) else [prompts]
        return {"choices": [{"index": n, "text": p} for n, p in enumerate(prompts)], "usage": usage}

    def wait_if_deaf(self) -> None:
        self.wait_while("deaf")

    def wait_while(self, name: str) -> None:
        path = self.how.get(name)
        while path and Path(path).exists():
            time.sleep(0.01)

    def reply(self, value: object) -> None:
        text = json.dumps(value).encode()
        with suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)


def take_memory(mib: int) -> None:
    """Fill memory, a little at a time, and keep it for a while."""
    held = []
    for _ in range(mib):
        held.append(b"x" * (1 << 20))
        time.sleep(0.001)
    time.sleep(1)


def applied(body: dict[str, Any]) -> str:
    """The stems of the adapter files that the request applies, or else the command line."""
    argv = sys.argv
    pairs = argv[argv.index("--lora-scaled") + 1].split(",") if "--lora-scaled" in argv else []
    scales = {n: float(pair.rpartition(":")[2]) for n, pair in enumerate(pairs)}
    if "lora" in body:
        scales |= {one["id"]: one["scale"] for one in body["lora"]}
    elif pairs and not any(scales.values()):
        return "the request leaves out its scales"
    return " ".join(Path(f"{n}.gguf").readlink().stem for n, scale in scales.items() if scale)


def leave_with_input() -> None:
    while sys.stdin.buffer.read(1 << 10):
        pass
    os._exit(0)


def main() -> None:
    argv = sys.argv
    model = Path(argv[argv.index("-m") + 1])
    file = model.with_name(f"{model.name}.fake")
    Handler.how = json.loads(file.read_text()) if file.exists() else {}
    if not Handler.how.get("stays"):
        threading.Thread(target=leave_with_input, daemon=True).start()
    time.sleep(Handler.how.get("load_s", 0))
    if mib := Handler.how.get("load_mib"):
        take_memory(mib)
    if missing := [link for link in Path.cwd().glob("*.gguf") if not link.exists()]:
        sys.exit(f"failed to load {missing}")  # as llama-server does
    Server(argv[argv.index("--host") + 1], Handler).serve_forever()


if __name__ == "__main__":
    main()
