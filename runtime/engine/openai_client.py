"""Asks an engine, or any server that speaks OpenAI's API, and gives its answer piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any, TypeAlias

from exporter.core.errors import ContextFullError, EngineError
from exporter.core.terminal_text import without_controls
from runtime.engine.llama_server import DYING_S
from runtime.engine.model_server import ModelServer

BODY_MAX = 16 << 20  # bytes
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
    server: ModelServer, messages: Sequence[Message], settings: Mapping[str, object]
) -> Generator[Piece, None, None]:
    """Stream the assistant's answer to `messages`; `settings` are OpenAI's chat parameters.

    Leaving the iterator breaks the answer off. Raises ContextFullError when the messages are
    longer than the context, EngineDiedError when the engine dies, EngineError when it refuses
    or breaks off.
    """
    return streamed(server, "/v1/chat/completions", {"messages": list(messages), **settings})


def complete(
    server: ModelServer, prompt: str, settings: Mapping[str, object]
) -> Generator[Piece, None, None]:
    """Stream what a model writes after a text. Raises what `ask` does."""
    return streamed(server, "/v1/completions", {"prompt": prompt, **settings})


def streamed(
    server: ModelServer, route: str, asked: Mapping[str, object]
) -> Generator[Piece, None, None]:
    body = {"stream": True, "stream_options": {"include_usage": True}, **asked}
    began = time.monotonic()
    with server.post(route, body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        yield from read_answer(server, response, began)


def read_answer(server: ModelServer, response: HTTPResponse, began: float) -> Iterator[Piece]:
    reason, first = None, 0.0
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    for chunk in read_chunks(server, response):
        for choice in listed(chunk.get("choices")):
            # the whole message, where a server does not stream
            delta = mapped(choice.get("delta") or choice.get("message") or written(choice))
            for piece in pieces_of(delta):
                first = first or time.monotonic() - began
                yield piece
            reason = choice.get("finish_reason") or reason
        usage = mapped(chunk.get("usage")) or usage
        timings = mapped(chunk.get("timings")) or timings
    if reason is None:
        raise EngineError("the answer broke off", hint="try again")
    details = mapped(usage.get("prompt_tokens_details"))
    yield Stopped(
        str(reason),
        int(number(usage.get("prompt_tokens"))),
        int(number(timings.get("cache_n", details.get("cached_tokens")))),
        int(number(usage.get("completion_tokens"))),
        number(timings.get("prompt_per_second")),
        number(timings.get("predicted_per_second")),
        first,
    )


def written(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A completion's piece, as a conversation's would be."""
    return {"content": choice.get("text")}


def pieces_of(delta: Mapping[str, Any]) -> Iterator[Delta | Thought]:
    # vLLM and OpenRouter say "reasoning", llama-server and DeepSeek the longer name
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if isinstance(thought, str) and thought:
        yield Thought(thought)
    if isinstance(text := delta.get("content"), str) and text:
        yield Delta(text)


def mapped(value: object) -> dict[str, Any]:
    """The object that stands where one belongs; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def read_chunks(server: ModelServer, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of an answer: of its event stream, or the one of a server that streams none."""
    if "json" in (response.getheader("Content-Type") or ""):
        yield read_object(response)
    else:
        yield from read_events(server, response)


def read_events(server: ModelServer, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    try:
        while raw := response.readline(BODY_MAX):
            field, _, data = raw.decode("utf-8", errors="replace").rstrip("\r\n").partition(":")
            data = data.removeprefix(" ")
            if field == "error":
                raise EngineError(f"the engine gave up: {message_of(data)}", hint="try again")
            if field == "data" and data == "[DONE]":
                return
            if field == "data":
                yield read_event(data)
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        server.raise_if_dead("while answering with", wait_s=DYING_S)
        raise EngineError(f"the answer broke off: {error}", hint="try again") from error
    server.raise_if_dead("while answering with", wait_s=DYING_S)  # it ended without [DONE]


def read_event(data: str) -> dict[str, Any]:
    event = json.loads(data)
    if not isinstance(event, dict):
        raise EngineError(
            f"the server sent {without_controls(data[:MESSAGE_MAX])!r} for a piece of an answer",
            hint="does it speak OpenAI's API?",
        )
    if "error" in event:
        raise EngineError(f"the engine gave up: {message_of(data)}", hint="try again")
    return event


def refused(response: HTTPResponse) -> EngineError:
    """What an error response means."""
    text = read_text(response)
    try:
        error = mapped(mapped(json.loads(text)).get("error"))
    except (ValueError, RecursionError):
        error = {}
    if error.get("type") == "exceed_context_size_error":
        prompt, context = int(number(error.get("n_prompt_tokens"))), int(number(error.get("n_ctx")))
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


def read_text(response: HTTPResponse) -> str:
    """A body, up to a size that no sane one has. Raises EngineError when it breaks off."""
    try:
        return response.read(BODY_MAX).decode("utf-8", errors="replace")
    except (OSError, HTTPException) as error:
        raise EngineError(f"the server's response broke off: {error}", hint="try again") from error


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return without_controls(text[:MESSAGE_MAX]).replace("\n", " ")


def ask_json(server: ModelServer, route: str, body: Mapping[str, object]) -> dict[str, Any]:
    """The object that a route answers with. Raises EngineError when it is refused."""
    with server.post(route, body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def get_json(server: ModelServer, route: str) -> dict[str, Any]:
    with server.get(route) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def read_object(response: HTTPResponse) -> dict[str, Any]:
    text = read_text(response)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise EngineError(
            f"the server answered {without_controls(text[:MESSAGE_MAX])!r}, no JSON object",
            hint="does it speak OpenAI's API?",
        )
    return found


def as_one_text(messages: Sequence[Message]) -> str:
    """What a base model goes on writing: all that was said, a line each."""
    return "\n".join(
        content if isinstance(content, str) else texts_of(content)
        for message in messages
        if (content := message.get("content"))
    )


def texts_of(parts: Sequence[Mapping[str, Any]]) -> str:
    return "".join(str(part.get("text", "")) for part in parts)


def read_tokens(found: Mapping[str, Any]) -> list[tuple[int, str | bytes]]:
    """What /tokenize answers; bytes that are no whole character come as a list of numbers."""
    try:
        pairs = [(int(token["id"]), token["piece"]) for token in found["tokens"]]
        return [(n, bytes(piece) if isinstance(piece, list) else str(piece)) for n, piece in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "the server does not say which tokens there are", hint="`decant tokens` asks a GGUF"
        ) from error
