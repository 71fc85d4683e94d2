"""`/v1/completions` with `echo`: a prompt's log-probabilities, which llama-server does not give.

The usual engine generates the text after a prompt; then the scoring engine scores both, so that
all log-probabilities of an answer come from one computation.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from runtime.gateway.api_errors import ApiError, bad_request
from runtime.gateway.call import Call
from runtime.gateway.scheduling.portions import Joined, cut, in_order
from runtime.gateway.scheduling.upstream import Reply
from runtime.scoring.score_route import SCORE, START, TOP_MAX

PORTION = 32
"""Prompts that are scored at once; between two portions other requests have their turn."""
LIMIT_NAMES = ("n_predict", "max_tokens", "max_completion_tokens")
OURS = frozenset((*LIMIT_NAMES, "echo", "logprobs", "n", "n_cmpl", "best_of", "stream",
                  "stream_options", "prompt", "target", START))  # fmt: skip
"""Fields that are not passed on to the generating engine."""
PLAIN = OURS | {"model", "temperature", "seed", "top_p", "top_k", "min_p", "user"}
"""Fields that have no effect on one generated token at temperature 0: it is the likeliest."""
Json = dict[str, Any]  # Any: JSON
Refusal = Callable[[Reply], Awaitable[ApiError]]


@dataclass(frozen=True, slots=True)
class Echo:
    """The parsed fields of a request with `echo`."""

    prompts: Sequence[Any]
    """Texts or lists of token ids."""
    targets: Sequence[Any] | None
    limit: int
    """Tokens to generate after each prompt; -1: until the model ends."""
    count: int
    """The number of answers to each prompt."""
    is_likeliest: bool
    """Whether only the likeliest next token is needed, which the scoring engine gives."""


async def answer_echo(call: Call, refusal: Refusal) -> Response:
    """The answer with its prompts. Raises ApiError.

    refusal: turns an engine's error reply into ApiError.
    """
    echo = read_echo(call)
    if echo.limit == 0 or echo.is_likeliest:
        written = None
    else:
        written = await write_after(call, echo, refusal)
    bodies = [*score_bodies(call, echo, written)]
    if len(bodies) == 1:
        answer = await score_portion(call, bodies[0], refusal)
    else:
        answer = await join_scores(call, bodies, echo.count, refusal)
    headers = {"X-Decant-Model": call.record.model.encode("ascii", "replace").decode()}
    if not call.body.get("stream"):
        return Response(answer, media_type="application/json", headers=headers)
    event = b"data: " + answer + b"\n\ndata: [DONE]\n\n"
    return Response(event, media_type="text/event-stream", headers=headers)


def read_echo(call: Call) -> Echo:
    """The checked request. Raises ApiError."""
    body = call.body
    if body["echo"] is not True:
        raise bad_request("`echo` must be true or false")
    if body.get("suffix"):
        raise bad_request("`suffix` does not go with `echo`")
    top = body.get("logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= TOP_MAX):
        raise bad_request(f"`logprobs` must be a number from 0 to {TOP_MAX}")
    count = body.get("n") or body.get("n_cmpl") or 1
    if type(count) is not int or count < 1:
        raise bad_request("`n` must be a number, at least 1")
    if body.get("best_of") not in (None, count):
        raise bad_request("`best_of` other than `n` is not supported")
    prompts = listed(body.get("prompt"))
    if not prompts:
        raise bad_request("`prompt` is an empty list")
    most = call.gateway.settings.limits.prompts
    if len(prompts) * count > most:
        raise bad_request(
            f"the request has {len(prompts) * count} answers, and this server gives {most}",
            code="too_many",
        )
    targets = None if body.get("target") is None else listed(body["target"])
    if targets is not None and len(targets) != len(prompts):
        raise bad_request(f"there are {len(targets)} targets for {len(prompts)} prompts")
    starts = body.get(START)
    if isinstance(starts, list) and len(starts) != len(prompts):
        raise bad_request(f"`{START}` has {len(starts)} places for {len(prompts)} prompts")
    limit = limit_of(call, has_target=targets is not None)
    is_likeliest = limit == 1 and body.get("temperature") == 0 and body.keys() <= PLAIN
    return Echo(prompts, targets, limit, count, is_likeliest)


def listed(value: object) -> Sequence[Any]:
    """A list of prompts; one prompt becomes a list of one."""
    several = isinstance(value, list) and not any(isinstance(one, int) for one in value)
    return value if several and isinstance(value, list) else [value]


def limit_of(call: Call, *, has_target: bool) -> int:
    """The number of tokens to generate; -1: until the model ends. Raises ApiError."""
    resolved = call.find(call.body.get("model"))
    cannot = resolved.model.is_encoder_decoder or has_target
    name = next((name for name in LIMIT_NAMES if call.body.get(name) is not None), None)
    limit = call.body[name] if name else (0 if cannot else -1)
    if type(limit) is not int or limit < -1:
        raise bad_request(f"`{name}` must be a number, at least 0")
    if cannot and limit:
        raise bad_request(
            f"`{name}` must be 0: with `echo` an encoder-decoder scores `target` after `prompt`,"
            " and generates nothing"
        )
    return limit


async def write_after(call: Call, echo: Echo, refusal: Refusal) -> list[list[Json]]:
    """The usual engine's answers to each prompt, `count` of them. Raises ApiError."""
    kept = {name: value for name, value in call.body.items() if name not in OURS}
    bodies = []
    for prompt in echo.prompts:
        for number in range(echo.count):
            body = {**kept, "prompt": prompt, "n_predict": echo.limit, "return_tokens": True}
            if type(seed := body.get("seed")) is int and seed >= 0:
                body["seed"] = seed + number  # otherwise all answers would be equal
            bodies.append(body)
    works = [partial(ask_engine, call, "/completion", body, refusal) for body in bodies]
    async with in_order(works) as texts:
        found = [as_written(json.loads(text)) async for text in texts]
    return [found[at : at + echo.count] for at in range(0, len(found), echo.count)]


def as_written(answer: Json) -> Json:
    """An answer in llama-server's form, put into the scoring engine's form."""
    reason = "length" if answer.get("stop_type") == "limit" else "stop"
    return {"tokens": answer["tokens"], "text": answer["content"], "finish_reason": reason}


def score_bodies(
    call: Call, echo: Echo, written: Sequence[Sequence[Json]] | None
) -> Sequence[Json]:
    """The requests to the scoring engine, one for each portion."""
    shared: Json = {"logprobs": call.body.get("logprobs"), "n": echo.count}
    shared |= {name: call.body[name] for name in ("model", "lora") if name in call.body}
    if echo.is_likeliest:
        shared["wants_next"] = True
    found = []
    most, total = call.gateway.settings.limits.logprobs, len(echo.prompts)
    for number, prompts in enumerate(cut(echo.prompts, PORTION)):
        part = slice(number * PORTION, (number + 1) * PORTION)
        body = {**shared, "prompt": prompts, "most": most * len(prompts) // total}
        if echo.targets is not None:
            body["target"] = echo.targets[part]
        if (starts := call.body.get(START)) is not None:
            body[START] = starts[part] if isinstance(starts, list) else starts
        # the normalizer changes the texts before they are scored
        sent = body.get("target", prompts)
        body["shown"] = [one if isinstance(one, str) else None for one in sent]
        if written is not None:
            body["written"] = written[part]
        found.append(body)
    return found


async def join_scores(call: Call, bodies: Sequence[Json], count: int, refusal: Refusal) -> bytes:
    """The answers to all portions, joined. Raises ApiError."""
    found, offset = Joined(), 0
    beside = call.gateway.bodies.beside
    async with in_order([partial(score_portion, call, body, refusal) for body in bodies]) as texts:
        for body in bodies:
            text = await texts.__anext__()
            await beside(len(text), partial(found.add, text, offset), call.record.client_id)
            offset += len(body["prompt"]) * count
    return await beside(call.nbytes, partial(found.text, None), call.record.client_id)


async def score_portion(call: Call, body: Mapping[str, Any], refusal: Refusal) -> bytes:
    return await ask_engine(call, SCORE, body, refusal)


async def ask_engine(call: Call, route: str, body: Mapping[str, Any], refusal: Refusal) -> bytes:
    """An engine's whole answer. Raises ApiError."""
    async with call.forward(route, body) as reply:
        if reply.status == HTTPStatus.OK:
            return await reply.read()
        if route == SCORE:
            raise refused(await reply.read(), reply.status)
        raise await refusal(reply)


def refused(text: bytes, status: int) -> ApiError:
    """The scoring engine's error as ApiError."""
    error = json.loads(text)["error"]
    code = error["code"] if isinstance(error["code"], str) else None
    if error["type"] == "exceed_context_size_error":
        code = "context_length_exceeded"
    return ApiError(status, error["message"], code)
