"""Asks a llama-server and gives its answer piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import TypeAlias

from exporter.core.errors import EngineError
from runtime.child import Server

# What a terminal would obey: all control characters but tab and newline.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer is complete."""

    reason: str
    """As OpenAI names it: stop, or length when the token limit was reached."""
    prompt_tokens: int
    tokens: int
    tokens_per_second: float


Piece: TypeAlias = Delta | Stopped


def ask(
    server: Server,
    messages: Sequence[Mapping[str, str]],
    settings: Mapping[str, object],
) -> Iterator[Piece]:
    """Stream the assistant's answer to `messages`; `settings` are OpenAI's chat parameters.

    Raises EngineError when the server refuses, breaks off or dies.
    """
    body = {
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings,
    }
    response = server.request("/v1/chat/completions", body)
    if response.status != HTTPStatus.OK:
        raise EngineError(
            f"llama-server refused the request ({response.status}): {refusal(response)}",
            hint="is the prompt longer than the context? --ctx sets it",
        )
    yield from read_answer(server, response)


def read_answer(server: Server, response: HTTPResponse) -> Iterator[Piece]:
    reason = None
    usage: dict[str, int] = {}
    timings: dict[str, float] = {}
    for chunk in read_events(server, response):
        for choice in chunk.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                yield Delta(text)
            reason = choice.get("finish_reason") or reason
        usage, timings = chunk.get("usage") or usage, chunk.get("timings") or timings
    if reason is None:
        raise EngineError("the answer broke off", hint="try again")
    yield Stopped(
        reason,
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
        timings.get("predicted_per_second", 0.0),
    )


def read_events(server: Server, response: HTTPResponse) -> Iterator[dict]:  # type: ignore[type-arg]
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    try:
        for raw in response:
            field, _, data = raw.decode("utf-8", errors="replace").rstrip("\r\n").partition(": ")
            if field == "error":
                raise EngineError(f"llama-server gave up: {data}", hint="try again")
            if field == "data" and data != "[DONE]":
                yield json.loads(data)
    except (OSError, HTTPException, ValueError) as error:
        server.raise_if_dead("while answering with")
        raise EngineError(f"the answer broke off: {error}", hint="try again") from error


def refusal(response: HTTPResponse) -> str:
    """What an error response says, in one line."""
    text = response.read().decode("utf-8", errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]


def without_controls(text: str) -> str:
    """The model's text with everything removed that a terminal would obey."""
    return CONTROLS.sub("", text)
