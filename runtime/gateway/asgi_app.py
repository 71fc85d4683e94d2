"""The ASGI app: what is refused at the door, what is answered, and what is written down of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.gateway import routes_llama, routes_status
from runtime.gateway.access import Guard, preflight
from runtime.gateway.api_errors import ApiError, ClientGoneError, form_of, unavailable
from runtime.gateway.body_reader import Taken
from runtime.gateway.call import Call, Gateway, Handler, Route
from runtime.gateway.metrics import FleetCollector
from runtime.gateway.ollama import ollama_routes
from runtime.gateway.openapi import openapi_routes

Log = Callable[[Mapping[str, Any]], None]
"""Is told of every request, when it is over."""
STREAMS = (b"text/event-stream", b"application/x-ndjson")
STALL_CHECK_S = 1
WITH_BODY = ("POST", "PUT", "PATCH")
ALWAYS = ("/livez", "/readyz", "/health", "/v1/health", "/metrics")
"""Answered also while the server ends."""


def no_log(record: Mapping[str, Any]) -> None:
    """The log that nobody reads."""


def build_app(gateway: Gateway, *, more: Sequence[BaseRoute] = (), log: Log = no_log) -> ASGIApp:
    """The whole server over a gateway. `more` are plain routes, such as the page's."""
    gateway.metrics.registry.register(FleetCollector(gateway.fleet.children))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        chores = [
            asyncio.ensure_future(gateway.fleet.unload_idle()),
            asyncio.ensure_future(cut_stalled(gateway)),
        ]
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await gateway.fleet.close()

    ours = (
        *routes_llama.ROUTES,
        *routes_status.ROUTES,
        *openapi_routes.ROUTES,
        *ollama_routes.ROUTES,
    )  # as often as asked for
    paths = [path_of(gateway, route) for route in ours]
    app = Starlette(
        routes=[*paths, ollama_routes.UPLOADS, *more],
        lifespan=lifespan,
        exception_handlers={HTTPException: unrouted, HTTPStatus.INTERNAL_SERVER_ERROR: crashed},
    )
    app.router.redirect_slashes = False
    return Front(app, gateway, log)


def path_of(gateway: Gateway, route: Route) -> Path:
    return Path(route.path, Endpoint(gateway, route.handler), methods=[route.method])


async def unrouted(request: Request, error: Exception) -> Response:
    """404 and 405, in the form of the API that was meant."""
    assert isinstance(error, HTTPException)
    told = {
        HTTPStatus.NOT_FOUND: f"there is no {request.url.path!r} here",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path!r} takes no {request.method}",
    }.get(HTTPStatus(error.status_code), error.detail)
    return refusal(ApiError(error.status_code, told), request.url.path, error.headers)


async def crashed(request: Request, error: Exception) -> Response:
    """A fault of ours; what it was stands in the server's own log."""
    del error
    failure = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server has failed; its log says why")
    return refusal(failure, request.url.path)


def refusal(error: ApiError, path: str, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(error.body(form_of(path)), error.status, headers)
    for name, value in error.head():
        response.headers[name.decode()] = value.decode()
    return response


class Front:
    """Checks heads, and sees to it that every request is counted and written down."""

    def __init__(self, app: ASGIApp, gateway: Gateway, log: Log) -> None:
        """Stand in front of `app`."""
        self.app, self.gateway, self.log = app, gateway, log
        self.guard = Guard(gateway.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = dict(scope["headers"])
        record = Record(scope)
        added = [
            (b"x-request-id", record.id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *self.guard.cors(head),
        ]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
                record.status = message["status"]
            await send(message)

        scope["record"] = record
        scope["client_id"] = self.client_of(scope, head)
        try:
            await self.answer(scope, receive, sending, head)
        finally:
            self.write_down(record, scope)

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, head: Mapping[bytes, bytes]
    ) -> None:
        method, path = scope["method"], scope["path"]
        try:
            self.guard.check(method, path, head)
            if self.gateway.is_draining and path not in ALWAYS:
                raise unavailable("the server is shutting down", retry_after=5)
        except ApiError as error:
            self.gateway.metrics.refused.labels(error.status).inc()
            await refusal(error, path)(scope, receive, send)
            return
        if method == "OPTIONS":
            response = Response(status_code=HTTPStatus.NO_CONTENT)
            response.raw_headers = preflight()
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def client_of(self, scope: Scope, head: Mapping[bytes, bytes]) -> str:
        """Who asks: a key where there are several, else an address."""
        if len(self.gateway.settings.keys) > 1:
            return f"key {self.guard.client_key(head)}"
        return str(scope["client"][0]) if scope.get("client") else ""

    def write_down(self, record: Record, scope: Scope) -> None:
        route = scope["route"].path if "route" in scope else "none"
        metrics = self.gateway.metrics
        metrics.requests.labels(route, record.label, record.status).inc()
        took_s = time.monotonic() - record.began
        if record.is_stream and record.first_s is not None:
            metrics.first.labels(record.label).observe(record.first_s)
            metrics.streamed.labels(record.label).inc(record.nbytes)
        metrics.duration.labels(route, record.label).observe(took_s)
        self.log(record.said(took_s))


class Record:
    """What is known of a request for the log: never what was asked or answered."""

    def __init__(self, scope: Scope) -> None:
        """A request that begins now."""
        self.id = secrets.token_hex(8)
        self.began = time.monotonic()
        self.method, self.path = scope["method"], scope["path"]
        self.client = scope["client"][0] if scope.get("client") else ""
        self.status = 0
        self.model = self.label = ""
        self.first_s: float | None = None
        self.waited_s = 0.0
        self.nbytes = 0
        self.is_stream = False
        self.ending = "complete"

    def said(self, took_s: float) -> dict[str, Any]:
        found = {
            "id": self.id, "client": self.client, "method": self.method, "path": self.path,
            "status": self.status, "model": self.model, "ending": self.ending,
            "seconds": round(took_s, 4), "queued": round(self.waited_s, 4), "bytes": self.nbytes,
        }  # fmt: skip
        return found | ({"first": round(self.first_s, 4)} if self.first_s is not None else {})


class Endpoint:
    """An ASGI app that gives a handler its Call, and its errors the right form."""

    def __init__(self, gateway: Gateway, handler: Handler) -> None:
        """Answer nothing yet."""
        self.gateway, self.handler = gateway, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["record"]
        form = form_of(scope["path"])
        outgoing = Outgoing(send, record)
        try:
            async with AsyncExitStack() as stack:
                taken = Taken({}, 0)
                if scope["method"] in WITH_BODY:
                    taking = self.gateway.bodies.taken(scope, receive)
                    taken = await stack.enter_async_context(taking)
                    stack.enter_context(self.gateway.clients.place(scope["client_id"]))
                request, client = Request(scope, never), scope["client_id"]
                call = Call(self.gateway, request, taken.body, client, outgoing, record)
                call.nbytes = taken.nbytes
                await self.work(call, receive)
        except ClientGoneError:
            record.ending = "client left"
            self.gateway.metrics.gone.labels(record.label).inc()
        except ApiError as error:
            record.ending = "error"
            if not outgoing.has_begun:
                await refusal(error, scope["path"])(scope, receive, send)
            elif record.is_stream:
                await outgoing.finish(error.event(form))
            else:
                raise  # its length was promised: only a broken connection tells

    async def work(self, call: Call, receive: Receive) -> None:
        """Run the handler until it is done, its client is gone, or the server ends."""
        work = asyncio.ensure_future(self.handle(call))
        gone = asyncio.ensure_future(left(receive))
        self.gateway.calls[call] = work
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait({work})
            del self.gateway.calls[call]
        if not work.cancelled():
            work.result()
        elif call.was_cut:
            raise unavailable(call.was_cut, retry_after=5)
        else:
            raise ClientGoneError

    async def handle(self, call: Call) -> None:
        response = await self.handler(call)
        if response is not None:
            await response(call.request.scope, never, call.outgoing)


class Outgoing:
    """The way to the client: knows what went out, and since when it is stuck."""

    def __init__(self, send: Send, record: Record) -> None:
        """Nothing has gone out yet."""
        self.send, self.record = send, record
        self.has_begun = False
        self.stuck_since: float | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            head = {name.lower(): value for name, value in message.get("headers", ())}
            self.record.is_stream = head.get(b"content-type", b"").startswith(STREAMS)
        elif body := message.get("body"):
            if self.record.first_s is None:
                self.record.first_s = time.monotonic() - self.record.began
            self.record.nbytes += len(body)
        self.stuck_since = time.monotonic()
        await self.send(message)
        self.stuck_since = None

    async def finish(self, last: bytes) -> None:
        await self({"type": "http.response.body", "body": last, "more_body": False})


async def left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def never() -> Message:
    """Wait for more of a request that is here already."""
    await asyncio.Event().wait()
    raise AssertionError


async def cut_stalled(gateway: Gateway) -> None:
    """Break off answers that their clients do not read; runs until cancelled."""
    while True:
        await asyncio.sleep(STALL_CHECK_S)
        now = time.monotonic()
        for call, work in list(gateway.calls.items()):
            since = call.outgoing.stuck_since
            if since is not None and now - since > gateway.settings.stall_s:
                work.cancel()
