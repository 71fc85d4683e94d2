"""Finds the model that an Ollama request names, and calls its engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from runtime.gateway.api_errors import ApiError, bad_request
from runtime.gateway.call import CHAT, Call
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.ollama.ollama_request import Question
from runtime.gateway.ollama.ollama_response import failure
from runtime.gateway.routes_llama import read_refusal
from runtime.gateway.scheduling.placement import Role
from runtime.gateway.scheduling.upstream import Reply


def find(call: Call) -> ResolvedModel:
    """The model that a request names. Raises ApiError, with Ollama's wording for an unknown one."""
    name = call.body.get("model") or call.body.get("name")  # the older name of the field
    if not isinstance(name, str) or not name:
        raise bad_request("model is required")
    call.body["model"] = name
    try:
        resolved = call.find(name)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            _, near, named = error.message.rpartition("; did you mean ")
            error.message = f"model '{name[:200]}' not found{near}{named if near else ''}"
        raise
    call.record.model, call.record.label = resolved.id, resolved.label
    return resolved


@asynccontextmanager
async def ask(call: Call, question: Question, resolved: ResolvedModel) -> AsyncIterator[Reply]:
    """Send a request to the engine; yields its response. Raises ApiError for an error."""
    body = {**question.body, "model": resolved.id}
    async with call.forward(question.route, body) as reply:
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise await read_refusal(reply)
        if reply.status != HTTPStatus.OK:
            raise failure(await reply.read(), reply.status)
        yield reply


async def load(call: Call, resolved: ResolvedModel, role: Role | None = None) -> None:
    gateway = call.gateway
    async with gateway.pool.using(resolved, role or gateway.role_of(CHAT, resolved)):
        pass


async def unload(call: Call, resolved: ResolvedModel) -> None:
    """Unload a model's idle engines; engines in use unload after their idle time."""
    pool = call.gateway.pool
    for engine in list(pool.engines.values()):
        if engine.key.base == resolved.base and engine.is_idle:
            await pool.stop(engine, is_saving=True)
