"""Translates an engine's answer into Ollama's: a line of JSON per piece, figures in the last."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

from runtime.engine.openai_client import listed, mapped, message_of, number
from runtime.gateway.api_errors import ApiError

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
NS = 1_000_000_000  # nanoseconds in a second
NS_PER_MS = 1_000_000
"""Nanoseconds in a millisecond."""
LAST_STATUS = 600  # every HTTP status is below
UNPARSED = "unparsed"
"""Field of the engine's answers and of ours: whether an answer breaks its template's format."""


class EventReader:
    """Splits a stream of server-sent events into JSON objects, at any boundaries of the bytes."""

    def __init__(self) -> None:
        self.rest = b""

    def add(self, data: bytes) -> Iterator[Json]:
        """The objects that are complete now. Raises ApiError for an engine's error."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if name == b"error":
                raise failure(value)
            if name == b"data" and value != b"[DONE]":
                yield read_object(value)


def read_object(data: bytes) -> Json:
    """A JSON object of the engine. Raises ApiError for other data, and for an error in it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(HTTPStatus.BAD_GATEWAY, "the engine sent something other than a JSON object")
    if found.get("error"):
        raise failure(data)
    return found


def failure(data: bytes, status: int | None = None) -> ApiError:
    """An engine's error as ApiError; `status` is the HTTP status, unknown within a stream."""
    message = data.decode("utf-8", errors="replace")
    try:
        found = mapped(json.loads(message))
    except (ValueError, RecursionError):
        found = {}
    error = mapped(found.get("error")) or found
    code = status or number(error.get("code"))
    if not HTTPStatus.BAD_REQUEST <= code < LAST_STATUS:
        code = HTTPStatus.INTERNAL_SERVER_ERROR
    return ApiError(int(code), message_of(message))


@dataclass(frozen=True, slots=True)
class LineFormat:
    """The model's name and the form of its answer."""

    model: str
    """The name that the client gave."""
    form: Literal["chat", "generate"]
    has_top: bool = False
    """Whether to list other likely tokens."""

    def line(self, **more: object) -> Json:
        """A piece of the answer; empty fields are left out, except the text."""
        fields = {name: value for name, value in more.items() if value}
        text, logprobs = fields.pop("text", ""), fields.pop("logprobs", None)
        if self.form == "chat":
            line: Json = {"message": {"role": "assistant", "content": text, **fields}}
        else:
            line = {"response": text, **fields}
        if logprobs:
            line["logprobs"] = logprobs
        return {"model": self.model, "created_at": now(), **line, "done": False}

    def last(self, reason: str, numbers: Json, **more: object) -> Json:
        return {**self.line(**more), "done": True, "done_reason": reason, **numbers}


@dataclass
class Answer:
    """Assembles an answer from the objects that an engine streams."""

    line_format: LineFormat
    began: float
    """The arrival of the client's request, in seconds of the monotonic clock."""
    headed: float
    """The start of the engine's response, by the same clock."""
    reason: str | None = None
    unparsed: bool = False
    """Whether it breaks its template's format and is passed on as generated."""
    usage: Json = field(default_factory=dict)
    timings: Json = field(default_factory=dict)
    calls: dict[int, Json] = field(default_factory=dict)

    def take(self, event: Json) -> Iterator[Json]:
        """The lines for one object of the stream."""
        self.usage = mapped(event.get("usage")) or self.usage
        self.timings = mapped(event.get("timings")) or self.timings
        for choice in listed(event.get("choices")) or [filled(event)]:
            delta = mapped(choice.get("delta") or choice.get("message"))
            for call in listed(delta.get("tool_calls")):
                self.add_call(call)
            text = string(delta.get("content")) or string(choice.get("text"))
            thinking = string(delta.get("reasoning_content"))
            logprobs = self.likely(choice)
            if text or thinking or logprobs:
                yield self.line_format.line(text=text, thinking=thinking, logprobs=logprobs)
            self.reason = choice.get("finish_reason") or self.reason
            self.unparsed = self.unparsed or choice.get(UNPARSED) is True

    def add_call(self, call: Json) -> None:
        index = call.get("index")
        known = self.calls.setdefault(
            index if type(index) is int else len(self.calls),
            {"id": "", "name": "", "arguments": ""},
        )
        function = mapped(call.get("function"))
        known["id"] += string(call.get("id"))
        known["name"] += string(function.get("name"))
        known["arguments"] += string(function.get("arguments"))

    def likely(self, choice: Json) -> list[Json]:
        tokens = listed(mapped(choice.get("logprobs")).get("content"))
        return [
            ollama_token(token)
            | ({"top_logprobs": [ollama_token(one) for one in listed(token.get("top_logprobs"))]}
               if self.line_format.has_top else {})
            for token in tokens
        ]  # fmt: skip

    def end(self) -> Iterator[Json]:
        """The last lines. Raises ApiError when the stream ended before the answer."""
        if self.reason is None:
            raise ApiError(HTTPStatus.BAD_GATEWAY, "the engine's answer broke off")
        if self.calls:
            calls = [ollama_call(at, self.calls[at]) for at in sorted(self.calls)]
            yield self.line_format.line(tool_calls=calls)
        more = {UNPARSED: True} if self.unparsed else {}
        reason = "length" if self.reason == "length" else "stop"
        yield self.line_format.last(reason, {**self.numbers(), **more})

    def numbers(self) -> Json:
        """Token counts and durations, in nanoseconds."""
        timings = {name: number(value) for name, value in self.timings.items()}
        prompt_ms, predicted_ms = timings.get("prompt_ms", 0), timings.get("predicted_ms", 0)
        prompt = self.usage.get("prompt_tokens")
        if prompt is None:
            prompt = timings.get("cache_n", 0) + timings.get("prompt_n", 0)
        count = self.usage.get("completion_tokens", timings.get("predicted_n", 0))
        # the engine's response begins with the first token, after the prompt is processed
        load = max(self.headed - self.began - prompt_ms / 1000, 0)
        return {
            "total_duration": int((time.monotonic() - self.began) * NS),
            "load_duration": int(load * NS),
            "prompt_eval_count": int(number(prompt)),
            "prompt_eval_duration": int(prompt_ms * NS_PER_MS),
            "eval_count": int(number(count)),
            "eval_duration": int(predicted_ms * NS_PER_MS),
        }


def filled(event: Json) -> Json:
    """An event of /infill or /completion in the form of OpenAI's choice."""
    if not isinstance(event.get("content"), str):
        return {}
    reason = None
    if event.get("stop"):
        reason = "length" if event.get("stop_type") == "limit" else "stop"
    return {
        "text": event["content"],
        "finish_reason": reason,
        "logprobs": {"content": event.get("completion_probabilities")},
    }


def ollama_call(index: int, call: Json) -> Json:
    """A tool call in Ollama's form. Raises ApiError for incomplete arguments."""
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the model's call of {call['name']!r} has arguments that are not a JSON object",
        )
    function = {"index": index, "name": call["name"], "arguments": arguments}
    return {"id": call["id"], "function": function}


def ollama_token(token: Json) -> Json:
    entry = {"token": string(token.get("token")), "logprob": number(token.get("logprob"))}
    raw = token.get("bytes")
    return entry | ({"bytes": raw} if raw else {})


def string(value: object) -> str:
    return value if isinstance(value, str) else ""


async def lines(chunks: AsyncIterator[bytes], answer: Answer) -> AsyncIterator[Json]:
    """The lines of a streamed answer. Raises ApiError when the engine fails."""
    reader = EventReader()
    async for chunk in chunks:
        for event in reader.add(chunk):
            for line in answer.take(event):
                yield line
    for line in answer.end():
        yield line


def joined(line_format: LineFormat, pieces: list[Json]) -> Json:
    """All lines of an answer joined into one."""
    text, thinking = "", ""
    tool_calls: list[Json] = []
    logprobs: list[Json] = []
    for line in pieces:
        message = line.get("message", line)
        text += message["content" if line_format.form == "chat" else "response"]
        thinking += message.get("thinking", "")
        tool_calls += message.get("tool_calls", [])
        logprobs += line.get("logprobs", [])
    whole = line_format.line(text=text, thinking=thinking, tool_calls=tool_calls, logprobs=logprobs)
    return {**pieces[-1], **whole, "done": True}


def now() -> str:
    """The present time in Ollama's form."""
    return stamp(time.time_ns())


def stamp(ns: int) -> str:
    """Nanoseconds since 1970, in the form of RFC 3339."""
    seconds, rest = divmod(ns, NS)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
