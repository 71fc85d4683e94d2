"""The routes whose answers are a child's own, byte for byte."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from runtime.gateway.api_errors import ApiError, bad_request, form_of
from runtime.gateway.call import Call, Handler, Route
from runtime.gateway.scheduling.placement import POOLING_KEY, POOLING_RANK
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
"""A child's routes, and by which other paths clients know them."""
TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*batch size: (\d+)\)")
"""What a child says of a text that is to become a vector."""
PARSING = "[json.exception."  # how a child says that a field had the wrong type
FAULTS = (
    "got exception:", "Compute error", "Context size has been exceeded", "Invalid input batch",
    "Invalid diff", "The model produced", "context shift", "failed to process", "unknown error",
)  # fmt: skip
"""How a child's own failures begin. Every other 500 was thrown while it read the request."""


def passing(route: str) -> Handler:
    """A handler that hands a call on to the child's `route`, and what it says back."""

    async def handler(call: Call) -> Response | None:
        check(route, call)
        async with call.answered(route, call.body) as reply:
            if is_to_be_put_otherwise(reply.status, call):
                raise await translated(reply)
            size = size_of(call.body) if route in VECTORS else None
            if size is not None and reply.status == HTTPStatus.OK:
                return await cut_vectors(reply, size, call)
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


async def cut_vectors(reply: Reply, size: int, call: Call) -> Response:
    """The answer with shorter vectors, which llama-server does not know to make."""
    found = json.loads(await reply.read())
    if not isinstance(found, dict):
        raise bad_request("`dimensions` goes with /v1/embeddings")
    return JSONResponse(
        shortened(found, size, as_it_is=keeps_length(call.body)),
        headers={"X-Decant-Model": model_of(call).decode()},
    )


def check(route: str, call: Call) -> None:
    """Raise ApiError for what a child would answer with an error of its own."""
    if route.startswith("/v1/messages") and not isinstance(call.body.get("messages"), list):
        raise bad_request("messages: a list is required")
    if route == "/v1/messages":
        most = call.body.get("max_tokens")
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise bad_request("max_tokens: a number, at least 1, is required")
    if route == "/v1/rerank" and not ranks(call):
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "this model is none that ranks documents")
    if route in VECTORS and pooling_of(call) == POOLING_RANK:
        raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "this model ranks documents: it has no vectors")


def ranks(call: Call) -> bool:
    """Whether a model was made for that; llama-server would let any other one guess."""
    header = call.gateway.catalog.find(call.body.get("model")).model.header
    has_head = any(tensor.name.startswith("cls.") for tensor in header.tensors)
    return has_head or pooling_of(call) == POOLING_RANK


def pooling_of(call: Call) -> int | None:
    header = call.gateway.catalog.find(call.body.get("model")).model.header
    return header.number(f"{header.architecture}.{POOLING_KEY}")


def model_of(call: Call) -> bytes:
    return call.record.model.encode("ascii", errors="replace")


def is_to_be_put_otherwise(status: int, call: Call) -> bool:
    """Whether a child's error is not what clients of this API understand."""
    is_openai = form_of(call.request.url.path) == "openai"
    return status >= (HTTPStatus.INTERNAL_SERVER_ERROR if is_openai else HTTPStatus.BAD_REQUEST)


async def translated(reply: Reply) -> ApiError:
    """A child's 5xx: mostly a request that it could not read."""
    text = (await reply.read()).decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text[:300]
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
