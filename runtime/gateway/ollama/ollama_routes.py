"""The routes of Ollama's API: requests are translated for an engine, and its answers back.

Routes that upload or pull models answer 501: the models are chosen when the server starts, and
clients cannot add any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from exporter.core.version import own_version
from runtime.gateway.api_errors import ApiError, bad_request, encoded
from runtime.gateway.call import Call, Gateway, Handler, Route
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.ollama.ollama_embed import embed, embeddings
from runtime.gateway.ollama.ollama_engine import ask, find, load, unload
from runtime.gateway.ollama.ollama_listing import capabilities, context, details, digest, shown, tag
from runtime.gateway.ollama.ollama_request import (
    Ability,
    chat_question,
    generate_question,
    keeps_s,
    objects,
    text,
    wants_stream,
)
from runtime.gateway.ollama.ollama_response import (
    NS,
    UNPARSED,
    Answer,
    LineFormat,
    joined,
    lines,
    stamp,
)
from runtime.gateway.scheduling.engine_entry import EngineEntry

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
API_VERSION = "0.13.0"
"""The version of Ollama's API, from which clients derive the supported features."""
FOR_EVER_S = 100 * 365 * 86400  # a hundred years, for models that are never unloaded
LISTENS_S = 10  # the longest time that a refused upload is read
NDJSON = b"application/x-ndjson"
UNPARSED_HEADER = "X-Decant-Unparsed"
NO_PULL = "this server pulls no models: use `decant pull` and `decant serve`"
NO_PUSH = "this server pushes no models"
NO_CREATE = "this server creates no models: use `decant export`"
NO_CHANGE = "this server neither copies nor deletes models: use `decant rm`"
NO_UPLOAD = "this server accepts no uploads"


async def version(call: Call) -> Response:
    del call
    return JSONResponse({"version": API_VERSION, "decant": own_version()})


async def tags(call: Call) -> Response:
    models = list(call.gateway.catalog)
    found = await asyncio.to_thread(lambda: [tag(resolved) for resolved in models])
    return JSONResponse({"models": sorted(found, key=lambda one: one["modified_at"], reverse=True)})


async def show(call: Call) -> Response:
    return JSONResponse(shown(find(call)))


async def running(call: Call) -> Response:
    """Answer /api/ps: the loaded models; a base counts once, with all its adapters."""
    gateway = call.gateway
    loaded: dict[str, list[EngineEntry]] = {}
    for engine in gateway.pool.engines.values():
        if engine.is_loaded:
            loaded.setdefault(served_name(gateway, engine), []).append(engine)
    found = [
        process(gateway, gateway.catalog.find(name), engines) for name, engines in loaded.items()
    ]
    return JSONResponse({"models": found})


def served_name(gateway: Gateway, engine: EngineEntry) -> str:
    """The name under which an engine is loaded; the base's if its adapter is removed."""
    with suppress(ApiError):
        return gateway.catalog.find(engine.key.name or engine.key.base).id
    return engine.key.base


def process(gateway: Gateway, resolved: ResolvedModel, engines: Sequence[EngineEntry]) -> Json:
    """A model's entry in /api/ps, summed over its engines for answers, vectors and ranks."""
    nbytes = sum(engine.nbytes for engine in engines)
    has_gpu = gateway.pool.toolchain.info["backend"] != "cpu"
    ttl_s, clock = gateway.settings.ttl_s or FOR_EVER_S, gateway.pool.clock
    idle_s = min(0 if engine.users else clock() - engine.last_used for engine in engines)
    return {
        "name": resolved.id,
        "model": resolved.id,
        "size": nbytes,
        "digest": digest(resolved),
        "details": details(resolved),
        "expires_at": stamp(time.time_ns() + int(max(ttl_s - idle_s, 0) * NS)),
        "size_vram": nbytes if has_gpu else 0,
        "context_length": max(engine.context for engine in engines),
    }


async def chat(call: Call) -> Response | None:
    return await converse(call, "chat")


async def generate(call: Call) -> Response | None:
    return await converse(call, "generate")


async def converse(call: Call, form: Literal["chat", "generate"]) -> Response | None:
    """Answer a chat or a prompt; without one, load the model or unload it. Raises ApiError."""
    began = time.monotonic()
    resolved = find(call)
    able = capabilities(resolved)
    line_format = LineFormat(call.body["model"], form)
    keep_s, is_stream = keeps_s(call.body), wants_stream(call.body)
    if "completion" not in able:
        raise bad_request(f'"{line_format.model}" does not support {form}')
    has_question = objects(call.body, "messages") if form == "chat" else text(call.body, "prompt")
    if not has_question:
        reason = "unload" if keep_s == 0 else "load"
        await (unload if keep_s == 0 else load)(call, resolved)
        return JSONResponse(line_format.last(reason, {}))
    chats, thinks = resolved.can_chat, "thinking" in able
    ability = Ability(line_format.model, context(resolved.model.header), thinks, chats)
    question = (chat_question if form == "chat" else generate_question)(call.body, ability)
    line_format = replace(line_format, has_top=question.has_top)
    async with ask(call, question, resolved) as reply:
        answer_lines = lines(reply.chunks(), Answer(line_format, began, time.monotonic()))
        if not is_stream:
            whole = joined(line_format, [line async for line in answer_lines])
            return JSONResponse(
                whole, headers={UNPARSED_HEADER: "1"} if whole.get(UNPARSED) else {}
            )
        await send_lines(call, answer_lines)
    return None


async def send_lines(call: Call, answer_lines: AsyncIterator[Json]) -> None:
    """Send the lines as a stream; an error before the first line can still set the status."""
    has_begun = False
    async for line in answer_lines:
        if not has_begun:
            headers = [(b"content-type", NDJSON)]
            await call.outgoing(
                {"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers}
            )
            has_begun = True
        body = encoded(line) + b"\n"
        await call.outgoing({"type": "http.response.body", "body": body, "more_body": True})
    await call.outgoing({"type": "http.response.body", "body": b"", "more_body": False})


def refusing(why: str) -> Handler:
    """A handler that answers 501 with a reason."""

    async def handler(call: Call) -> Response:
        """Raises ApiError, always."""
        del call
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, why)

    return handler


async def refuse_upload(request: Request) -> Response:
    """Answer 501 to an upload, of any size, without storing it.

    The body is discarded for LISTENS_S first: clients read the answer only after sending.
    """
    with suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read_past(request), LISTENS_S)
    error = ApiError(HTTPStatus.NOT_IMPLEMENTED, NO_UPLOAD)
    headers = {"content-type": "application/json", "connection": "close"}
    return Response(error.body("ollama"), error.status, headers)


async def read_past(request: Request) -> None:
    async for _ in request.stream():
        pass


ROUTES = (
    Route("GET", "/api/version", version),
    Route("GET", "/api/tags", tags),
    Route("GET", "/api/ps", running),
    Route("POST", "/api/show", show),
    Route("POST", "/api/chat", chat),
    Route("POST", "/api/generate", generate),
    Route("POST", "/api/embed", embed),
    Route("POST", "/api/embeddings", embeddings),
    Route("POST", "/api/pull", refusing(NO_PULL)),
    Route("POST", "/api/push", refusing(NO_PUSH)),
    Route("POST", "/api/create", refusing(NO_CREATE)),
    Route("POST", "/api/copy", refusing(NO_CHANGE)),
    Route("DELETE", "/api/delete", refusing(NO_CHANGE)),
)
UPLOADS = Path("/api/blobs/{digest:path}", refuse_upload, methods=["GET", "POST"])
"""A plain route, because its bodies are not JSON."""
