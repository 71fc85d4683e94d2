"""Embeddings of texts, in the form of Ollama's API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from runtime.engine.openai_client import listed, mapped, number
from runtime.gateway.api_errors import ApiError, bad_request, unavailable
from runtime.gateway.body import dumped
from runtime.gateway.call import Call
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.ollama.ollama_engine import ask, find, load
from runtime.gateway.ollama.ollama_request import Question, embed_question, text
from runtime.gateway.ollama.ollama_response import NS, read_object
from runtime.gateway.scheduling.engine_entry import EngineEntry, key_of
from runtime.gateway.scheduling.placement import POOLING_KEY, POOLING_RANK
from runtime.gateway.scheduling.portions import cut, in_order
from runtime.gateway.scheduling.upstream import post
from runtime.gateway.vectors import PROMPT_NAME, normed, prompted

SPECIAL = 8  # above the number of tokens that any tokenizer adds to a text


async def embed(call: Call) -> Response:
    """Answer /api/embed: one vector of length 1 for each text. Raises ApiError."""
    began = time.monotonic()
    resolved, question = find_embedder(call), embed_question(call.body)
    size = call.body.get("dimensions") or 0
    if type(size) is not int or size < 0:
        raise bad_request("dimensions must be a positive number")
    if not question.body["input"]:
        await load(call, resolved, "embed")
        return JSONResponse({"model": call.body["model"], "embeddings": []})
    texts = prompted(question.body["input"], call.body.get(PROMPT_NAME), resolved.model.header)
    if call.body.get("truncate") is not False:
        texts = await cut_to_fit(call, resolved, texts)
    question.body.update({"input": texts, PROMPT_NAME: ""})  # each text has it already
    vectors, prompt_tokens = await embed_texts(call, question, resolved)
    engine = call.gateway.pool.engines.get(key_of(resolved, "embed"))
    loaded = max(engine.began - began, 0) if engine is not None else 0
    numbers = {
        "total_duration": int((time.monotonic() - began) * NS),
        "load_duration": int(loaded * NS),
        "prompt_eval_count": prompt_tokens,
    }
    cut = [normed(vector[: size or None]) for vector in vectors]
    return JSONResponse({"model": call.body["model"], "embeddings": cut, **numbers})


async def embeddings(call: Call) -> Response:
    """Answer /api/embeddings, the older route: the engine's vector of one text."""
    resolved, prompt = find_embedder(call), text(call.body, "prompt")
    if not prompt:
        await load(call, resolved, "embed")
        return JSONResponse({"embedding": []})
    vectors, _ = await embed_texts(call, embed_question({"input": prompt}), resolved)
    return JSONResponse({"embedding": vectors[0]})


def find_embedder(call: Call) -> ResolvedModel:
    """The named model. Raises ApiError when it makes no embeddings."""
    resolved = find(call)
    if resolved.model.is_encoder_decoder:
        raise ApiError(
            HTTPStatus.NOT_IMPLEMENTED,
            f'"{resolved.id}" does not support embeddings: it answers only',
        )
    header = resolved.model.header
    if header.number(f"{header.architecture}.{POOLING_KEY}") == POOLING_RANK:
        raise ApiError(
            HTTPStatus.NOT_IMPLEMENTED,
            f'"{resolved.id}" does not support embeddings: it ranks only',
        )
    return resolved


async def embed_texts(
    call: Call, question: Question, resolved: ResolvedModel
) -> tuple[list[list[float]], int]:
    """The vectors in the order of their texts, and the total number of tokens."""
    vectors: list[list[float]] = []
    prompt_tokens = 0
    async with call.gateway.pool.using(resolved, "embed") as engine:
        portions = cut(question.body["input"], engine.queue.capacity)
        works = [partial(embed_portion, call, question, resolved, portion) for portion in portions]
        async with in_order(works) as texts:
            async for text in texts:
                read = partial(read_object, text)
                found = await call.gateway.bodies.beside(len(text), read, call.record.client_id)
                data = sorted(listed(found.get("data")), key=lambda one: number(one.get("index")))
                vectors += [one["embedding"] for one in data]
                prompt_tokens += int(number(mapped(found.get("usage")).get("prompt_tokens")))
    return vectors, prompt_tokens


async def embed_portion(
    call: Call, question: Question, resolved: ResolvedModel, texts: Sequence[object]
) -> bytes:
    part = replace(question, body={**question.body, "input": texts})
    async with ask(call, part, resolved) as reply:
        return await reply.read()


async def cut_to_fit(
    call: Call, resolved: ResolvedModel, texts: Sequence[str]
) -> list[str | list[int]]:
    """The texts; one that is too long for the engine becomes the tokens that fit."""
    async with call.gateway.pool.using(resolved, "embed") as engine:
        return [await cut_text(engine, one, engine.text_max) for one in texts]


async def cut_text(engine: EngineEntry, whole: str, limit: int) -> str | list[int]:
    """The text, or its first tokens with the tokenizer's ending, `limit` in all."""
    if len(whole.encode("utf-8", errors="replace")) + SPECIAL <= limit:  # a token has a byte
        return whole
    tokens = await tokens_of(engine, whole, special=True)
    if len(tokens) <= limit:
        return whole
    plain = await tokens_of(engine, whole, special=False)
    begins = (
        at for at in range(len(tokens) - len(plain) + 1) if tokens[at : at + len(plain)] == plain
    )
    ending = tokens[next(begins, 0) + len(plain) :]
    return tokens[: limit - len(ending)] + ending


async def tokens_of(engine: EngineEntry, whole: str, *, special: bool) -> list[int]:
    if engine.address is None:
        raise unavailable("the engine has ended; try again")
    body = {"content": whole, "add_special": special, "parse_special": True}
    body = engine.fronts.base.ready("/tokenize", body)
    reply = await post(engine.address, "/tokenize", dumped(body))
    try:
        await reply.read_head()
        found = read_object(await reply.read())
    finally:
        reply.close()
    return [token for token in found.get("tokens", []) if isinstance(token, int)]
