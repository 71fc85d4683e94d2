"""Asks an engine, or any server that speaks OpenAI's API, and gives its answer piece by piece."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any, TypeAlias

from exporter.core.errors import ContextFullError, EngineError
from runtime.child import DYING_S, Endpoint

# What a terminal would obey: all control characters but tab and newline, and those that
# change the direction of the text around them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MESSAGE_MAX = 300  # characters of a refusal that is not in OpenAI's form
Message: TypeAlias = Mapping[str, Any]  # OpenAI's: a role, and a text or parts


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The next piece of what a reasoning model says to itself before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer is complete."""

    reason: str
    """As OpenAI names it: stop, or length when the token limit was reached."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that were known from before."""
    tokens: int = 0
    prompt_per_second: float = 0
    """Of the tokens that were not cached; 0 where the server does not say."""
    tokens_per_second: float = 0
    first_token_s: float = 0
    """From the request to the first piece."""


Piece: TypeAlias = Delta | Thought | Stopped


def ask(
    endpoint: Endpoint, messages: Sequence[Message], settings: Mapping[str, object]
) -> Generator[Piece, None, None]:
    """Stream the assistant's answer to `messages`; `settings` are OpenAI's chat parameters.

    Leaving the iterator breaks the answer off. Raises ContextFullError when the messages are
    longer than the context, EngineDiedError when the engine dies, EngineError when it refuses
    or breaks off.
    """
    body = {
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings,
    }
    began = time.monotonic()
    with endpoint.posted("/v1/chat/completions", body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        yield from read_answer(endpoint, response, began)


def read_answer(
    endpoint: Endpoint, response: HTTPResponse, began: float
) -> Generator[Piece, None, None]:
    reason, first = None, 0.0
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    for chunk in read_events(endpoint, response):
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            pieces = (
                # vLLM and OpenRouter say "reasoning", llama-server and DeepSeek the longer name
                Thought(delta.get("reasoning_content") or delta.get("reasoning") or ""),
                Delta(delta.get("content") or ""),
            )
            for piece in pieces:
                if piece.text:
                    first = first or time.monotonic() - began
                    yield piece
            reason = choice.get("finish_reason") or reason
        usage, timings = chunk.get("usage") or usage, chunk.get("timings") or timings
    if reason is None:
        raise EngineError("the answer broke off", hint="try again")
    details = usage.get("prompt_tokens_details") or {}
    yield Stopped(
        reason,
        usage.get("prompt_tokens", 0),
        timings.get("cache_n", details.get("cached_tokens") or 0),
        usage.get("completion_tokens", 0),
        timings.get("prompt_per_second") or 0.0,
        timings.get("predicted_per_second") or 0.0,
        first,
    )


def read_events(endpoint: Endpoint, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    try:
        for raw in response:
            field, _, data = raw.decode("utf-8", errors="replace").rstrip("\r\n").partition(":")
            data = data.removeprefix(" ")
            if field == "error":
                raise EngineError(f"the engine gave up: {message_of(data)}", hint="try again")
            if field == "data" and data == "[DONE]":
                return
            if field == "data":
                event = json.loads(data)
                if not isinstance(event, dict):
                    raise EngineError(
                        f"the server sent {data[:MESSAGE_MAX]!r} for a piece of an answer",
                        hint="does it speak OpenAI's API?",
                    )
                if "error" in event:
                    raise EngineError(f"the engine gave up: {message_of(data)}", hint="try again")
                yield event
    except (OSError, HTTPException, ValueError) as error:
        endpoint.raise_if_dead("while answering with", wait_s=DYING_S)
        raise EngineError(f"the answer broke off: {error}", hint="try again") from error
    endpoint.raise_if_dead("while answering with", wait_s=DYING_S)  # it ended without [DONE]


def refused(response: HTTPResponse) -> EngineError:
    """What an error response means."""
    text = response.read().decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        prompt, context = int(error.get("n_prompt_tokens", 0)), int(error.get("n_ctx", 0))
        return ContextFullError(
            f"the prompt has {prompt} tokens, which exceed the context of {context}",
            hint="shorten it, or load the model with a larger one: --ctx",
            prompt=prompt,
            context=context,
        )
    return EngineError(
        f"the server refused the request ({response.status}): {message_of(text)}",
        hint=STATUS_HINTS.get(response.status, "the message says why"),
    )


STATUS_HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "name the file with the server's key: --key-file",
    HTTPStatus.FORBIDDEN: "name the file with the server's key: --key-file",
    HTTPStatus.NOT_FOUND: "is the address right, and the model's name: --url, --model?",
    HTTPStatus.TOO_MANY_REQUESTS: "the server is busy: try again later",
}


def message_of(text: str) -> str:
    """What an error in JSON says, in one line; else the text's beginning."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return without_controls(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError, AttributeError):
        return without_controls(text[:MESSAGE_MAX]).replace("\n", " ")


def without_controls(text: str) -> str:
    """The model's text with everything removed that a terminal would obey."""
    return CONTROLS.sub("", text)


def ask_json(endpoint: Endpoint, route: str, body: Mapping[str, object]) -> dict[str, Any]:
    """The object that a route answers with. Raises EngineError when it is refused."""
    with endpoint.posted(route, body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def get_json(endpoint: Endpoint, route: str) -> dict[str, Any]:
    with endpoint.got(route) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def read_object(response: HTTPResponse) -> dict[str, Any]:
    text = response.read().decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineError(
            f"the server answered {text[:MESSAGE_MAX]!r}, which is no JSON object",
            hint="does it speak OpenAI's API?",
        )
    return found
