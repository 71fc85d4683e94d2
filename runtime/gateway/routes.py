"""The routes whose answers are a child's own, byte for byte."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.responses import Response

from runtime.gateway.errors import ApiError, bad_request
from runtime.gateway.gateway import Call, Handler, Route
from runtime.gateway.upstream import Reply

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
"""A child's routes, and by which other paths clients know them."""
TOO_LONG = "is too large to process"  # of a text that is to become a vector
PARSING = "[json.exception."  # how a child says that a field had the wrong type


def passing(route: str) -> Handler:
    """A handler that hands a call on to the child's `route`, and what it says back."""

    async def handler(call: Call) -> Response | None:
        check(route, call)
        async with call.answered(route, call.body) as reply:
            if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise await translated(reply)
            headers = [*reply.headers, (b"X-Decant-Model", model_of(call))]
            await call.outgoing(
                {"type": "http.response.start", "status": reply.status, "headers": headers}
            )
            async for chunk in reply.chunks():
                await call.outgoing(
                    {"type": "http.response.body", "body": chunk, "more_body": True}
                )
            await call.outgoing({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    return handler


def check(route: str, call: Call) -> None:
    """Raise ApiError for what a child would answer with an error of its own."""
    if route.startswith("/v1/messages"):
        if not isinstance(call.body.get("messages"), list):
            raise bad_request("messages: a list is required")
        if route == "/v1/messages" and not isinstance(call.body.get("max_tokens"), int):
            raise bad_request("max_tokens: a number is required")


def model_of(call: Call) -> bytes:
    return call.record.model.encode("ascii", errors="replace")


async def translated(reply: Reply) -> ApiError:
    """A child's 5xx: often a request that it could not read."""
    text = (await reply.read()).decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text[:300]
    if reply.status == HTTPStatus.INTERNAL_SERVER_ERROR and message.startswith(PARSING):
        return bad_request(f"a field has the wrong type: {message.partition('] ')[2]}")
    if TOO_LONG in message:
        return bad_request(message, code="context_length_exceeded")
    return ApiError(reply.status, message)


ROUTES = tuple(
    Route("POST", path, passing(route))
    for route, others in PASSED.items()
    for path in (route, *others)
)
