"""llama-server's routes over a Unix socket, for a model that another thread runs.

It uses the standard library's http.server: with uvicorn and starlette the same routes, limits and
refusals took 379 lines, 60 ms more to start and 4.6 MB more of memory, and needed a private method
of uvicorn's to answer malformed HTTP. Most of this file is about the answers, not HTTP.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, SimpleQueue
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, ClassVar, TypeAlias

from exporter.core.errors import EngineError
from runtime.encoder_decoder.answer import Ended, Event, Failed, Piece, Task, answer
from runtime.encoder_decoder.anthropic import (
    COUNT,
    MESSAGES,
    MessageWording,
    count_tokens,
    error_of,
    message_task,
    message_wording,
)
from runtime.encoder_decoder.model import EncoderDecoder, Flag
from runtime.encoder_decoder.openai import (
    TEMPLATE,
    Fields,
    Json,
    RefusedError,
    Wording,
    chat_task,
    completion_task,
    read_body,
    token_ids,
    wording,
    wrong,
)

BODY_MAX = 16 << 20  # bytes
DISCARDED_MAX = 64 << 20  # bytes read of a refused body, so that its sender reads the response
BLOCK = 1 << 16  # bytes
POLL_S = 0.1  # seconds between checks whether the client has left
TIMEOUT_S = 600  # the --timeout that llama-server is started with


Route: TypeAlias = Callable[[Any], None]  # Any: the handler it is a method of


class Job:
    """A task in the queue, and the events of its answer."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.stop = Flag()


class Listener(ThreadingMixIn, UnixStreamServer):
    """Answers once constructed; until `model` is set, it answers that the model is being loaded.

    Raises EngineError if the socket cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 128
    handler: ClassVar[type[BaseHTTPRequestHandler]]
    """The class that serves a connection."""

    def __init__(self, path: Path, key: str) -> None:
        self.key = key.encode()
        self.model: EncoderDecoder | None = None
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        try:
            super().__init__(str(path), self.handler)
        except OSError as error:
            raise EngineError(
                f"cannot listen on `{path}`: {error}", hint="name a path that does not exist"
            ) from error


def work(model: EncoderDecoder, jobs: SimpleQueue[Job]) -> None:
    """Run the jobs in the order of arrival, one at a time; never return."""
    while True:
        job = jobs.get()
        try:
            for event in answer(model, job.task, job.stop):
                job.events.put(event)
        except EngineError as error:
            sys.stderr.write(f"error: {error.message}\n")
            job.events.put(Failed(error.message))


class Handler(BaseHTTPRequestHandler):
    """Serves the requests of one connection."""

    server: Listener
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "decant", ""
    timeout = TIMEOUT_S
    routes: ClassVar[dict[str, tuple[str, Route]]]
    """The method and the handler of each path."""
    path = ""  # until a request line has been parsed

    def handle(self) -> None:
        """Serve the connection until either side closes it."""
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def answer(self) -> None:
        """Answer one request, with a refusal if it is malformed."""
        self.unread = 0
        try:
            route = self.find_route()
            route(self)
        except RefusedError as refused:
            self.send_refusal(refused)
        self.discard_rest()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815

    def find_route(self) -> Route:
        """The handler of this request's route, after the checks of length, key and method."""
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > len(str(1 << 62)):
            self.close_connection = True
            raise wrong(f"Content-Length is {length[:40]!r} and must be a number of bytes")
        self.unread = int(length)
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True  # the end of a chunked body is not looked for
        path = self.path.partition("?")[0]
        if path != "/health" and not self.has_key():
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong")
        if path not in self.routes:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no {path[:100]} here")
        method, route = self.routes[path]
        if self.command != method:
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {method}, not {self.command}"
            )
        if self.is_loading:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded")
        return route

    def has_key(self) -> bool:
        given = self.headers.get("Authorization") or self.headers.get("X-Api-Key") or ""
        return hmac.compare_digest(given.removeprefix("Bearer ").encode(), self.server.key)

    @property
    def is_loading(self) -> bool:
        return self.server.model is None

    @property
    def model(self) -> EncoderDecoder:
        assert self.server.model is not None
        return self.server.model

    def fields(self) -> Fields:
        """The body as a JSON object."""
        if "Transfer-Encoding" in self.headers or "Content-Length" not in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if self.unread > BODY_MAX:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {self.unread} bytes, and at most {BODY_MAX} are read",
            )
        raw = self.rfile.read(self.unread)
        if len(raw) < self.unread:
            raise ConnectionAbortedError("the body breaks off")
        self.unread = 0
        return read_body(raw)

    def discard_rest(self) -> None:
        """Read the unread rest of the body, so that the next request begins after it."""
        if self.unread > DISCARDED_MAX:
            self.close_connection = True
        left = min(self.unread, DISCARDED_MAX)
        while left and (block := self.rfile.read(min(left, BLOCK))):
            left -= len(block)

    def health(self) -> None:
        self.send_json(HTTPStatus.OK, {"status": "ok"})

    def models(self) -> None:
        model, lib = self.model, self.model.bindings
        meta = {
            "n_vocab": model.vocabulary.size,
            "n_ctx": model.n_ctx,
            "n_ctx_train": lib.llama_model_n_ctx_train(model.model),
            "n_embd": lib.llama_model_n_embd(model.model),
            "n_params": lib.llama_model_n_params(model.model),
            "size": lib.llama_model_size(model.model),
        }
        entry = {
            "id": model.header.path.name, "object": "model", "created": int(time.time()),
            "owned_by": "llamacpp", "meta": meta,
        }  # fmt: skip
        self.send_json(HTTPStatus.OK, {"object": "list", "data": [entry]})

    def props(self) -> None:
        model = self.model
        props = {
            "default_generation_settings": {"n_ctx": model.n_ctx},
            "total_slots": 1,
            "model_path": str(model.header.path),
            "chat_template": model.header.text(TEMPLATE) or "",
            "bos_token": model.vocabulary.text(model.vocabulary.special("bos")),
            "eos_token": model.vocabulary.text(model.vocabulary.special("eos")),
        }
        self.send_json(HTTPStatus.OK, props)

    def tokenize(self) -> None:
        fields = self.fields()
        special, parse = fields.flag("add_special"), fields.flag("parse_special", default=True)
        ids = []
        if "content" in fields.body:
            ids = self.model.vocabulary.encode(fields.text("content"), special=special, parse=parse)
        tokens: list[Any] = ids  # numbers, or objects
        if fields.flag("with_pieces"):
            tokens = [
                {"id": token, "piece": as_text(self.model.piece(token, special=True))}
                for token in ids
            ]
        self.send_json(HTTPStatus.OK, {"tokens": tokens})

    def detokenize(self) -> None:
        ids = token_ids(self.fields().body.get("tokens", []), "tokens", self.model.vocabulary)
        text = b"".join(self.model.piece(token, special=True) for token in ids)
        self.send_json(HTTPStatus.OK, {"content": text.decode(errors="replace")})

    def complete(self) -> None:
        fields = self.fields()
        task = completion_task(fields, self.model)
        self.give(fields, task, wording(self.model, fields, is_chat=False))

    def chat(self) -> None:
        fields = self.fields()
        task = chat_task(fields, self.model)
        self.give(fields, task, wording(self.model, fields, is_chat=True))

    def message(self) -> None:
        fields = self.fields()
        task = message_task(fields, self.model)
        self.give(fields, task, message_wording(self.model, task))

    def count(self) -> None:
        self.send_json(HTTPStatus.OK, count_tokens(self.fields(), self.model))

    def give(self, fields: Fields, task: Task, says: Wording | MessageWording) -> None:
        """Queue a task and send its answer."""
        is_stream = fields.flag("stream")
        job = Job(task)
        self.server.jobs.put(job)
        try:
            send = self.send_stream if is_stream else self.send_whole
            send(self.events(job), says)
        finally:
            job.stop.set()

    def events(self, job: Job) -> Iterator[Event]:
        """The events of a job's answer. Raises ConnectionAbortedError if the client leaves."""
        while True:
            if self.is_alone():
                raise ConnectionAbortedError("the client has gone")
            try:
                event = job.events.get(timeout=POLL_S)
            except Empty:
                continue
            yield event
            if not isinstance(event, Piece):
                return

    def is_alone(self) -> bool:
        """Whether the client has closed its end."""
        readable = select.poll()
        readable.register(self.connection, select.POLLIN)
        return bool(readable.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def send_whole(self, events: Iterator[Event], says: Wording | MessageWording) -> None:
        text = ""
        for event in events:
            match event:
                case Piece():
                    text += event.text
                case Failed():
                    raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, event.message)
                case Ended():
                    self.send_json(HTTPStatus.OK, says.whole(text, event))

    def send_stream(self, events: Iterator[Event], says: Wording | MessageWording) -> None:
        has_begun = False
        for event in events:
            if isinstance(event, Failed) and not has_begun:
                raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, event.message)
            if not has_begun:
                self.begin_stream()
                self.send_parts(says.framed(chunk) for chunk in says.opening())
                has_begun = True
            match event:
                case Piece():
                    self.send_part(says.framed(says.piece(event.text)))
                case Failed():
                    refused = RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, event.message)
                    self.send_part(says.framed(says.failed(refused)))
                case Ended():
                    self.send_parts(says.framed(chunk) for chunk in says.closing(event))
                    if says.ending:
                        self.send_part(says.ending)
        self.send_part(b"")

    def begin_stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_parts(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self.send_part(part)

    def send_part(self, data: bytes) -> None:
        """Send a chunk of the response; an empty one ends it."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_json(self, status: HTTPStatus, value: Json) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header(
                "Allow", self.routes.get(self.path.partition("?")[0], ("GET, POST",))[0]
            )
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_refusal(self, refused: RefusedError) -> None:
        is_message = self.path.startswith(MESSAGES)
        value = error_of(refused) if is_message else {"error": refused.error}
        self.send_json(refused.status, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send http.server's error for a malformed request, in this API's form."""
        del explain
        self.close_connection = True
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:  # an unknown method
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.send_refusal(RefusedError(status, message or status.phrase))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log nothing: requests are private."""


def as_text(piece: bytes) -> str | list[int]:
    """A token's text, or a list of its bytes if they are not UTF-8, as llama-server gives it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


Listener.handler = Handler
Handler.routes = {
    "/health": ("GET", Handler.health),
    "/props": ("GET", Handler.props),
    "/v1/models": ("GET", Handler.models),
    "/tokenize": ("POST", Handler.tokenize),
    "/detokenize": ("POST", Handler.detokenize),
    "/v1/completions": ("POST", Handler.complete),
    "/v1/chat/completions": ("POST", Handler.chat),
    MESSAGES: ("POST", Handler.message),
    COUNT: ("POST", Handler.count),
}
