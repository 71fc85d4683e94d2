"""Client of OpenAI's API: sends requests to an engine or server, and streams the answers."""

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
from exporter.core.terminal_text import without_controls
from runtime.engine.model_server import DYING_S, ModelServer

BODY_MAX = 16 << 20  # bytes
COUNT = re.compile(r"\b\d+\b")
MESSAGE_MAX = 300  # characters of a refusal that is not in OpenAI's form
Message: TypeAlias = Mapping[str, Any]  # OpenAI's: a role, and a text or parts


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The next piece of a reasoning model's thoughts, which precede its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer is complete."""

    reason: str
    """OpenAI's finish reason: stop, or length when the token limit was reached."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that came from a cache."""
    tokens: int = 0
    prompt_per_second: float = 0
    """Speed over the tokens that were not cached; 0 if the server does not say."""
    tokens_per_second: float = 0
    first_token_s: float = 0
    """Seconds from the request to the first piece."""
    guessed: int = 0
    """Tokens that speculative decoding guessed."""
    accepted: int = 0
    """The guesses that the model chose."""


Piece: TypeAlias = Delta | Thought | Stopped


def ask(
    server: ModelServer, messages: Sequence[Message], settings: Mapping[str, object]
) -> Generator[Piece, None, None]:
    """Stream the assistant's answer to `messages`; `settings` are OpenAI's chat parameters.

    Leaving the iterator aborts the answer. Raises ContextFullError if the messages exceed the
    context, EngineDiedError if the engine dies, EngineError if it refuses or the answer breaks
    off.
    """
    return streamed(server, "/v1/chat/completions", {"messages": list(messages), **settings})


def complete(
    server: ModelServer, prompt: str, settings: Mapping[str, object]
) -> Generator[Piece, None, None]:
    """Stream the continuation of a text. Raises the errors of `ask`."""
    return streamed(server, "/v1/completions", {"prompt": prompt, **settings})


def streamed(
    server: ModelServer, route: str, fields: Mapping[str, object]
) -> Generator[Piece, None, None]:
    body = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    began = time.monotonic()
    with server.post(route, body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        yield from read_answer(server, response, began)


def read_answer(server: ModelServer, response: HTTPResponse, began: float) -> Iterator[Piece]:
    """The pieces of an answer, the last a Stopped. Raises EngineError if it breaks off."""
    reason, first = None, 0.0
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    for chunk in read_chunks(server, response):
        for choice in listed(chunk.get("choices")):
            # the whole message, if the server does not stream
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
        int(number(timings.get("draft_n"))),
        int(number(timings.get("draft_n_accepted"))),
    )


def written(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A completion's piece in the form of a chat's."""
    return {"content": choice.get("text")}


def pieces_of(delta: Mapping[str, Any]) -> Iterator[Delta | Thought]:
    # vLLM and OpenRouter send "reasoning", llama-server and DeepSeek the longer name
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if isinstance(thought, str) and thought:
        yield Thought(thought)
    if isinstance(text := delta.get("content"), str) and text:
        yield Delta(text)


def mapped(value: object) -> dict[str, Any]:
    """The value if it is an object, else an empty object."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def read_chunks(server: ModelServer, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of an answer: its stream's events, or the one object of a plain response."""
    if "json" in (response.getheader("Content-Type") or ""):
        yield read_object(response)
    else:
        yield from read_events(server, response)


def read_events(server: ModelServer, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]. Raises EngineError."""
    try:
        while raw := response.readline(BODY_MAX):
            field, _, data = raw.decode("utf-8", errors="replace").rstrip("\r\n").partition(":")
            data = data.removeprefix(" ")
            if field == "error":
                raise EngineError(f"the engine failed: {message_of(data)}", hint="try again")
            if field == "data" and data == "[DONE]":
                return
            if field == "data":
                yield read_event(data)
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        server.raise_if_dead("while answering with", wait_s=DYING_S)
        raise EngineError(f"the answer broke off: {error}", hint="try again") from error
    server.raise_if_dead("while answering with", wait_s=DYING_S)  # it ended without [DONE]


def read_event(data: str) -> dict[str, Any]:
    """One event of a stream. Raises EngineError for an error event, or for other JSON."""
    event = json.loads(data)
    if not isinstance(event, dict):
        raise EngineError(
            f"the server sent {without_controls(data[:MESSAGE_MAX])!r} as a piece of an answer",
            hint="does it speak OpenAI's API?",
        )
    if "error" in event:
        raise EngineError(f"the engine failed: {message_of(data)}", hint="try again")
    return event


def refused(response: HTTPResponse) -> EngineError:
    """The error for a response that is a refusal."""
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
    if error.get("code") == "context_length_exceeded" and len(numbers := COUNT.findall(text)) > 1:
        prompt, context = sorted((int(one) for one in numbers[:2]), reverse=True)
        return ContextFullError(message_of(text), hint="shorten it", prompt=prompt, context=context)
    return EngineError(
        f"the server refused the request ({response.status}): {message_of(text)}",
        hint=STATUS_HINTS.get(response.status, "the message says why"),
    )


def read_text(response: HTTPResponse) -> str:
    """Read a body, up to BODY_MAX. Raises EngineError if it breaks off."""
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
    """The message of an error in JSON, on one line; else the text's beginning."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return without_controls(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return without_controls(text[:MESSAGE_MAX]).replace("\n", " ")


def ask_json(server: ModelServer, route: str, body: Mapping[str, object]) -> dict[str, Any]:
    """Post to a route and return the JSON object. Raises EngineError if it is refused."""
    with server.post(route, body) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def get_json(server: ModelServer, route: str) -> dict[str, Any]:
    """Get a route's JSON object. Raises EngineError if it is refused."""
    with server.get(route) as response:
        if response.status != HTTPStatus.OK:
            raise refused(response)
        return read_object(response)


def read_object(response: HTTPResponse) -> dict[str, Any]:
    """The JSON object of a response. Raises EngineError for anything else."""
    text = read_text(response)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise EngineError(
            f"the server answered {without_controls(text[:MESSAGE_MAX])!r}, not a JSON object",
            hint="does it speak OpenAI's API?",
        )
    return found


def as_one_text(messages: Sequence[Message]) -> str:
    """The prompt of a base model: the texts of all messages, one per line."""
    return "\n".join(
        content if isinstance(content, str) else texts_of(content)
        for message in messages
        if (content := message.get("content"))
    )


def texts_of(parts: Sequence[Mapping[str, Any]]) -> str:
    return "".join(str(part.get("text", "")) for part in parts)


def read_tokens(found: Mapping[str, Any]) -> list[tuple[int, str | bytes]]:
    """The tokens in /tokenize's answer; bytes of partial characters stay bytes.

    Raises EngineError for any other answer.
    """
    try:
        pairs = [(int(token["id"]), token["piece"]) for token in found["tokens"]]
        return [(n, bytes(piece) if isinstance(piece, list) else str(piece)) for n, piece in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "the server's answer lists no tokens", hint="`decant tokens` lists those of a GGUF"
        ) from error
