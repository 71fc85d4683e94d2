"""The ASGI app: checks each request's head, routes it, counts it and logs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.gateway import routes_adapters, routes_evaluations, routes_llama, routes_status
from runtime.gateway.access import Guard
from runtime.gateway.api_errors import ApiError, ClientGoneError, form_of, unavailable
from runtime.gateway.body_reader import Taken
from runtime.gateway.call import Call, Gateway, Handler, Route
from runtime.gateway.metrics import AdapterCollector, PoolCollector
from runtime.gateway.ollama import ollama_routes
from runtime.gateway.openapi import openapi_routes
from runtime.gateway.request_record import Record, address_of

Log = Callable[[Mapping[str, Any]], None]
"""Receives the record of each finished request."""
for_allowed_pages = partial(
    CORSMiddleware,
    allow_methods=("GET", "POST", "HEAD", "DELETE"),
    allow_headers=(
        "Authorization", "X-Api-Key", "Anthropic-Version", "Anthropic-Beta",
        "Anthropic-Dangerous-Direct-Browser-Access", "X-Stainless-Arch", "X-Stainless-Lang",
        "X-Stainless-OS", "X-Stainless-Package-Version", "X-Stainless-Retry-Count",
        "X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Timeout",
    ),
    expose_headers=("Retry-After", "X-Decant-Model", "X-Request-Id"),
    allow_private_network=True,  # a page on the internet may call a server in a home network
)  # fmt: skip
"""Allows pages of listed origins the methods and headers that the APIs' clients use."""
STREAMS = (b"text/event-stream", b"application/x-ndjson")
STALL_CHECK_S = 1  # seconds between two checks
WITH_BODY = ("POST", "PUT", "PATCH")
ALWAYS = ("/livez", "/readyz", "/health", "/v1/health", "/metrics")
"""Paths that are answered while the server shuts down, too."""


def no_log(record: Mapping[str, Any]) -> None:
    """Discard the record: the default log."""


def build_app(gateway: Gateway, *, more: Sequence[BaseRoute] = (), log: Log = no_log) -> ASGIApp:
    """The server's ASGI app. `more` are plain routes, such as those of the page."""
    gateway.metrics.registry.register(PoolCollector(gateway.pool.engines))
    gateway.metrics.registry.register(AdapterCollector(gateway.catalog.models))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        chores = [
            asyncio.ensure_future(gateway.pool.unload_idle()),
            asyncio.ensure_future(cut_stalled(gateway)),
        ]
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await gateway.pool.close()

    ours = (
        *routes_llama.ROUTES,
        *routes_status.ROUTES,
        *routes_adapters.ROUTES,
        *routes_evaluations.ROUTES,
        *openapi_routes.ROUTES,
        *ollama_routes.ROUTES,
    )
    paths = [path_of(gateway, route) for route in ours]
    app = Starlette(
        routes=[*paths, ollama_routes.UPLOADS, *more],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: answer_unrouted,
            HTTPStatus.INTERNAL_SERVER_ERROR: answer_fault,
        },
    )
    app.router.redirect_slashes = False
    return Front(app, gateway, log)


def path_of(gateway: Gateway, route: Route) -> Path:
    return Path(route.path, HandlerApp(gateway, route.handler), methods=[route.method])


async def answer_unrouted(request: Request, error: Exception) -> Response:
    """Answer 404 and 405 in the form of the path's API."""
    assert isinstance(error, HTTPException)
    message = {
        HTTPStatus.NOT_FOUND: f"there is no {request.url.path!r} here",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path!r} takes no {request.method}",
    }.get(HTTPStatus(error.status_code), error.detail)
    return refusal(ApiError(error.status_code, message), request.url.path, error.headers)


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer 500 for a fault of the server; the log has the traceback."""
    del error
    failure = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server has failed; its log says why")
    return refusal(failure, request.url.path)


def refusal(error: ApiError, path: str, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(error.body(form_of(path)), error.status, headers)
    for name, value in error.head():
        response.headers[name.decode()] = value.decode()
    return response


class Front:
    """The outermost ASGI app: checks heads, counts requests and logs them."""

    def __init__(self, app: ASGIApp, gateway: Gateway, log: Log) -> None:
        self.app, self.gateway, self.log = app, gateway, log
        self.guard = Guard(gateway.settings)
        self.entrance: ASGIApp = self.enter
        if origins := gateway.settings.origins:
            self.entrance = for_allowed_pages(self.enter, allow_origins=tuple(origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = dict(scope["headers"])
        record = Record(scope, self.client_of(scope, head))
        record.keep_in(scope)
        added = [(b"x-request-id", record.id.encode()), (b"x-content-type-options", b"nosniff")]

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
                record.status = message["status"]
            await send(message)

        try:
            await self.answer(scope, receive, send_recorded, head)
        finally:
            self.write_down(record, scope)

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, head: Mapping[bytes, bytes]
    ) -> None:
        """Answer allowed senders, and preflights of allowed pages; refuse all others."""
        try:
            self.guard.check_sender(scope["method"], scope["path"], head)
        except ApiError as error:
            await self.refuse(error, scope, receive, send)
        else:
            await self.entrance(scope, receive, send)

    async def enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key and the content type. An allowed page can read all answers from here on."""
        method, path = scope["method"], scope["path"]
        try:
            self.guard.check_request(method, path, dict(scope["headers"]), address_of(scope))
            if self.gateway.is_draining and path not in ALWAYS:
                raise unavailable("the server is shutting down", retry_after=5)
        except ApiError as error:
            await self.refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self.gateway.metrics.refused.labels(error.status).inc()
        await refusal(error, scope["path"])(scope, receive, send)

    def client_of(self, scope: Scope, head: Mapping[bytes, bytes]) -> str:
        """The client's identity: its key where there are several keys, else its address."""
        if len(self.gateway.settings.all_keys) > 1:
            return f"key {self.guard.client_key(head)}"
        return address_of(scope)

    def write_down(self, record: Record, scope: Scope) -> None:
        """Add a finished request to the metrics and the log."""
        route = scope["route"].path if "route" in scope else "none"
        metrics = self.gateway.metrics
        metrics.requests.labels(route, record.label, record.status).inc()
        took_s = time.monotonic() - record.began
        if record.is_stream and record.first_s is not None:
            metrics.first.labels(record.label).observe(record.first_s)
            metrics.streamed.labels(record.label).inc(record.nbytes)
        metrics.duration.labels(route, record.label).observe(took_s)
        self.log(record.line(took_s))


class HandlerApp:
    """The ASGI app of one route: makes the Call, runs the handler, answers its errors."""

    def __init__(self, gateway: Gateway, handler: Handler) -> None:
        self.gateway, self.handler = gateway, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record.of(scope)
        form = form_of(scope["path"])
        outgoing = Outgoing(send, record)
        try:
            async with AsyncExitStack() as stack:
                taken = Taken({}, 0)
                if scope["method"] in WITH_BODY:
                    taking = self.gateway.bodies.take(scope, receive, record.client_id)
                    taken = await stack.enter_async_context(taking)
                    stack.enter_context(self.gateway.clients.place(record.client_id))
                request = Request(scope, never)
                call = Call(self.gateway, request, taken.body, outgoing, record)
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
                raise  # the answer's length is sent: only a closed connection shows the failure

    async def work(self, call: Call, receive: Receive) -> None:
        """Run the handler until it ends, its client leaves, or the server cancels it.

        Raises ClientGoneError when the client left, ApiError when the server cancelled it.
        """
        work = asyncio.ensure_future(self.handle(call))
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
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
    """Sends messages to the client; records their size, and since when the client reads none."""

    def __init__(self, send: Send, record: Record) -> None:
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


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def never() -> Message:
    """Wait for ever: the request's body has been read already."""
    await asyncio.Event().wait()
    raise AssertionError


async def cut_stalled(gateway: Gateway) -> None:
    """Cancel answers that their clients do not read; runs until cancelled."""
    while True:
        await asyncio.sleep(STALL_CHECK_S)
        now = time.monotonic()
        for call, work in list(gateway.calls.items()):
            since = call.outgoing.stuck_since
            if since is not None and now - since > gateway.settings.stall_s:
                work.cancel()
