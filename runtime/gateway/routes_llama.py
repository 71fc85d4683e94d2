"""The routes whose answers are the engine's bytes, unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from runtime.gateway.api_errors import ApiError, bad_request, form_of
from runtime.gateway.call import Call, Handler, Route
from runtime.gateway.prompt_scores import answer_echo
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.placement import POOLING_KEY, POOLING_RANK
from runtime.gateway.scheduling.portions import (
    Joined,
    cut,
    events,
    in_order,
    list_of,
    per_text,
    renumbered,
)
from runtime.gateway.scheduling.upstream import Reply
from runtime.gateway.vectors import ROUTES as VECTORS
from runtime.gateway.vectors import keeps_length, shortened, size_of

PASSED = {
    "/v1/chat/completions": ("/chat/completions",),
    "/v1/completions": (),
    "/completion": ("/completions",),
    "/infill": (),
    "/v1/embeddings": (),
    "/embedding": ("/embeddings",),
    "/v1/rerank": ("/rerank", "/reranking", "/v1/reranking"),
    "/v1/responses": ("/responses",),
    "/v1/messages": (),
    "/v1/messages/count_tokens": (),
    "/v1/chat/completions/input_tokens": ("/chat/completions/input_tokens",),
    "/v1/responses/input_tokens": ("/responses/input_tokens",),
    "/tokenize": (),
    "/detokenize": (),
    "/apply-template": (),
}
"""The engine's routes, each with other paths that clients use for it."""
COMPLETED = ("/v1/completions", "/completion")
"""Routes that may stream the answers to several texts."""
TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*batch size: (\d+)\)")
"""llama-server's error for a text that is too long to embed."""
PARSING = "[json.exception."  # how llama-server's error for a wrong type begins
ENDED_GRAMMAR = "Unexpected empty grammar stack"
"""In llama-server's error if the text may neither end nor go on."""
FAULTS = (
    "got exception:", "Compute error", "Context size has been exceeded", "Invalid input batch",
    "Invalid diff", "The model produced", "context shift", "failed to process", "unknown error",
    "decode() failed",
)  # fmt: skip
"""How errors of the engine itself begin. Every other 500 is an error in the request."""


def passing(route: str) -> Handler:
    """A handler that passes a call to the engine's `route`, and the answer to the client."""

    async def handler(call: Call) -> Response | None:
        check(route, call)
        if route == "/v1/completions" and call.body.get("echo"):
            return await answer_echo(call, read_refusal)
        if name := list_of(route, call.body):
            async with engine_for(call, route) as engine:  # it stays loaded for all portions
                slots = engine.queue.capacity
                if len(call.body[name]) > slots:
                    portions = cut(call.body[name], (slots + 1) // 2)  # two of them fill the slots
                    is_stream = route in COMPLETED and call.body.get("stream")
                    way = stream_portions if is_stream else join_portions
                    return await way(call, route, [{**call.body, name: part} for part in portions])
        async with call.forward(route, call.body) as reply:
            if is_to_be_put_otherwise(reply.status, call):
                raise await read_refusal(reply)
            size = size_of(call.body) if route in VECTORS else None
            if size is not None and reply.status == HTTPStatus.OK:
                return await cut_vectors(reply, size, call)
            await begin(call, reply)
            async for chunk in reply.chunks():
                await send(call, chunk)
            await send(call, b"", more=False)
        return None

    return handler


def engine_for(call: Call, route: str) -> AbstractAsyncContextManager[EngineEntry]:
    """The engine that answers a call, which stays loaded inside the block."""
    resolved = call.find(call.body.get("model"))
    return call.gateway.pool.using(resolved, call.gateway.role_of(route, resolved))


async def join_portions(call: Call, route: str, portions: Sequence[Mapping[str, Any]]) -> Response:
    """Answer all portions of a request in one response."""
    size = size_of(call.body) if route in VECTORS else None
    found, offset = Joined(size, as_it_is=keeps_length(call.body)), 0
    beside = call.gateway.bodies.beside
    async with in_order(
        [partial(answer_portion, call, route, portion) for portion in portions]
    ) as texts:
        for portion in portions:
            text = await texts.__anext__()
            await beside(len(text), partial(found.add, text, offset), call.record.client_id)
            offset += texts_of(route, portion)
    text = await beside(
        call.nbytes, partial(found.text, call.body.get("top_n")), call.record.client_id
    )
    headers = {"X-Decant-Model": model_of(call).decode()}
    return Response(text, media_type="application/json", headers=headers)


async def answer_portion(call: Call, route: str, portion: Mapping[str, Any]) -> bytes:
    """The engine's answer to one portion. Raises ApiError."""
    async with call.forward(route, portion) as reply:
        if reply.status != HTTPStatus.OK:
            raise await read_refusal(reply)
        return await reply.read()


async def stream_portions(call: Call, route: str, portions: Sequence[Mapping[str, Any]]) -> None:
    """Stream the answers to all portions of a request as one stream. Raises ApiError."""
    offset, has_begun = 0, False
    for portion in portions:
        async with call.forward(route, portion) as reply:
            if reply.status != HTTPStatus.OK:
                raise await read_refusal(reply)
            if not has_begun:
                has_begun = True
                await begin(call, reply)
            async for event in events(reply.chunks()):
                if body := renumbered(event, offset):
                    await send(call, body + b"\n\n")
        offset += texts_of(route, portion)
    await send(call, b"data: [DONE]\n\n" if route == "/v1/completions" else b"", more=False)


def texts_of(route: str, portion: Mapping[str, Any]) -> int:
    """The number of answers to a portion."""
    name = list_of(route, portion)
    return (len(portion[name]) if name else 1) * per_text(portion)


async def begin(call: Call, reply: Reply) -> None:
    headers = [*reply.headers, (b"X-Decant-Model", model_of(call))]
    await call.outgoing({"type": "http.response.start", "status": reply.status, "headers": headers})


async def send(call: Call, body: bytes, *, more: bool = True) -> None:
    await call.outgoing({"type": "http.response.body", "body": body, "more_body": more})


async def cut_vectors(reply: Reply, size: int, call: Call) -> Response:
    """The answer with its vectors cut to `size`, which llama-server cannot do.

    Raises ApiError on a route without OpenAI's form.
    """
    text = await reply.read()
    beside = call.gateway.bodies.beside
    found = await beside(len(text), partial(json.loads, text), call.record.client_id)
    if not isinstance(found, dict):
        raise bad_request("`dimensions` goes with /v1/embeddings")
    return JSONResponse(
        shortened(found, size, as_it_is=keeps_length(call.body)),
        headers={"X-Decant-Model": model_of(call).decode()},
    )


def check(route: str, call: Call) -> None:
    """Raise ApiError for requests that the engine would answer with an unclear error."""
    if route.startswith("/v1/messages") and not isinstance(call.body.get("messages"), list):
        raise bad_request("messages: a list is required")
    if route == "/v1/messages":
        most = call.body.get("max_tokens")
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise bad_request("max_tokens: a number, at least 1, is required")
    if route == "/v1/rerank" and not ranks(call):
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "this model does not rank documents")
    if route in VECTORS and pooling_of(call) == POOLING_RANK:
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "this model ranks documents: it has no vectors")


def ranks(call: Call) -> bool:
    """Whether the model is a reranker; llama-server would rank with any model."""
    header = call.find(call.body.get("model")).model.header
    has_head = any(tensor.name.startswith("cls.") for tensor in header.tensors)
    return has_head or pooling_of(call) == POOLING_RANK


def pooling_of(call: Call) -> int | None:
    header = call.find(call.body.get("model")).model.header
    return header.number(f"{header.architecture}.{POOLING_KEY}")


def model_of(call: Call) -> bytes:
    """The model's id in printable ASCII, for a header."""
    name = call.record.model
    return bytes(ord(one) if " " <= one <= "~" else ord("?") for one in name)


def is_to_be_put_otherwise(status: int, call: Call) -> bool:
    """Whether an engine's error must be rewritten for clients of the call's API."""
    is_openai = form_of(call.request.url.path) == "openai"
    return status >= (HTTPStatus.INTERNAL_SERVER_ERROR if is_openai else HTTPStatus.BAD_REQUEST)


async def read_refusal(reply: Reply) -> ApiError:
    """Read an engine's error as an ApiError; most are 500s for faults in the request."""
    text = (await reply.read()).decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text[:300]
    if ENDED_GRAMMAR in message:
        return bad_request(
            "the text fulfils its grammar or schema, and nothing may follow: a request for"
            " such a text must not ban its end with `ignore_eos`"
        )
    if reply.status != HTTPStatus.INTERNAL_SERVER_ERROR or message.startswith(FAULTS):
        return ApiError(reply.status, message)
    if message.startswith(PARSING):
        return bad_request(f"a field has the wrong type: {message.partition('] ')[2]}")
    if found := TOO_LONG.search(message):
        message = (
            f"a text of {found[1]} tokens is too large: this model takes {found[2]};"
            " shorten or split it"
        )
        return bad_request(message, code="context_length_exceeded")
    return bad_request(message)


ROUTES = tuple(
    Route("POST", path, passing(route))
    for route, others in PASSED.items()
    for path in (route, *others)
)
