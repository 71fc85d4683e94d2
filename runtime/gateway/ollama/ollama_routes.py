"""Ollama's API: its requests put as OpenAI's to an engine, and the answers told in its words.

What it has for uploading and pulling models is not here: models are named when the server is
started, and nobody can add to them from outside.
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
from runtime.gateway.catalog import Named
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
from runtime.gateway.ollama.ollama_response import NS, UNPARSED, Answer, Voice, joined, lines, stamp
from runtime.gateway.scheduling.engine_entry import Child

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
API_VERSION = "0.13.0"
"""Of Ollama's API: clients ask for it to know what they may use."""
FOR_EVER_S = 100 * 365 * 86400
LISTENS_S = 10  # after so long, a sender of what is not wanted is cut off
NDJSON = b"application/x-ndjson"
UNPARSED_HEADER = "X-Decant-Unparsed"
NO_PULL = "models are not pulled by the server: `decant pull` and `decant serve` bring them"
NO_PUSH = "models are not pushed anywhere by the server"
NO_CREATE = "models are not made by requests: `decant export` makes them"
NO_CHANGE = "models are neither copied nor deleted by requests: `decant rm` deletes them"
NO_UPLOAD = "the server takes no uploads"


async def version(call: Call) -> Response:
    del call
    return JSONResponse({"version": API_VERSION, "decant": own_version()})


async def tags(call: Call) -> Response:
    found = [tag(named) for named in call.gateway.catalog]
    return JSONResponse({"models": sorted(found, key=lambda one: one["modified_at"], reverse=True)})


async def show(call: Call) -> Response:
    return JSONResponse(shown(find(call)))


async def running(call: Call) -> Response:
    """What is loaded: a base once, for all of its adapters."""
    gateway = call.gateway
    loaded: dict[str, list[Child]] = {}
    for child in gateway.fleet.children.values():
        if child.is_loaded:
            loaded.setdefault(child.key.name or child.key.base, []).append(child)
    found = [
        process(gateway, gateway.catalog.find(name), children) for name, children in loaded.items()
    ]
    return JSONResponse({"models": found})


def process(gateway: Gateway, named: Named, children: Sequence[Child]) -> Json:
    """A model in /api/ps: all the children that it has, for answers, vectors and the like."""
    nbytes = sum(child.nbytes for child in children)
    has_gpu = gateway.fleet.toolchain.info["backend"] != "cpu"
    ttl_s, clock = gateway.settings.ttl_s or FOR_EVER_S, gateway.fleet.clock
    idle_s = min(0 if child.users else clock() - child.last_used for child in children)
    return {
        "name": named.id,
        "model": named.id,
        "size": nbytes,
        "digest": digest(named),
        "details": details(named),
        "expires_at": stamp(time.time_ns() + int(max(ttl_s - idle_s, 0) * NS)),
        "size_vram": nbytes if has_gpu else 0,
        "context_length": max(child.context for child in children),
    }


async def chat(call: Call) -> Response | None:
    return await converse(call, "chat")


async def generate(call: Call) -> Response | None:
    return await converse(call, "generate")


async def converse(call: Call, form: Literal["chat", "generate"]) -> Response | None:
    """Answer, or do what asking nothing means: load the model, or unload it."""
    began = time.monotonic()
    named = find(call)
    able = capabilities(named)
    voice = Voice(call.body["model"], form)
    keep_s, is_stream = keeps_s(call.body), wants_stream(call.body)
    if "completion" not in able:
        raise bad_request(f'"{voice.model}" does not support {form}')
    has_question = objects(call.body, "messages") if form == "chat" else text(call.body, "prompt")
    if not has_question:
        reason = "unload" if keep_s == 0 else "load"
        await (unload if keep_s == 0 else load)(call, named)
        return JSONResponse(voice.last(reason, {}))
    chats, thinks = named.can_chat, "thinking" in able
    ability = Ability(voice.model, context(named.model.header), thinks, chats)
    question = (chat_question if form == "chat" else generate_question)(call.body, ability)
    voice = replace(voice, has_top=question.has_top)
    async with ask(call, question, named) as reply:
        said = lines(reply.chunks(), Answer(voice, began, time.monotonic()))
        if not is_stream:
            whole = joined(voice, [line async for line in said])
            return JSONResponse(
                whole, headers={UNPARSED_HEADER: "1"} if whole.get(UNPARSED) else {}
            )
        await send_lines(call, said)
    return None


async def send_lines(call: Call, said: AsyncIterator[Json]) -> None:
    """A stream of lines; what fails before the first is an error with a status of its own."""
    has_begun = False
    async for line in said:
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
    async def handler(call: Call) -> Response:
        del call
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, why)

    return handler


async def refuse_upload(request: Request) -> Response:
    """Refuse what may be gigabytes, of which none is kept.

    For a while it is read past: who still sends does not listen yet.
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
"""Beside them, as what is sent there is no JSON."""
