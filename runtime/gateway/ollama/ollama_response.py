"""An engine's answer in Ollama's words: a line of JSON for each piece, numbers in the last."""

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
NS = 1_000_000_000
NS_PER_MS = 1_000_000
LAST_STATUS = 600
UNPARSED = "unparsed"
"""Of an engine's answer, and of ours: it does not keep to its template's format."""


class EventReader:
    """Cuts a stream of server-sent events into their JSON objects, however its bytes come in."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self.rest = b""

    def add(self, data: bytes) -> Iterator[Json]:
        """The objects that are whole now. Raises ApiError for one that tells of a failure."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if name == b"error":
                raise failure(value)
            if name == b"data" and value != b"[DONE]":
                yield read_object(value)


def read_object(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(HTTPStatus.BAD_GATEWAY, "the engine sent what is no JSON object")
    if found.get("error"):
        raise failure(data)
    return found


def failure(data: bytes, status: int | None = None) -> ApiError:
    """What an engine's error says; `status` is that of its response, where it is one."""
    said = data.decode("utf-8", errors="replace")
    try:
        found = mapped(json.loads(said))
    except (ValueError, RecursionError):
        found = {}
    error = mapped(found.get("error")) or found
    code = status or number(error.get("code"))
    if not HTTPStatus.BAD_REQUEST <= code < LAST_STATUS:
        code = HTTPStatus.INTERNAL_SERVER_ERROR
    return ApiError(int(code), message_of(said))


@dataclass(frozen=True, slots=True)
class Voice:
    """Who answers, and in which of the two forms."""

    model: str
    """As the client named it."""
    form: Literal["chat", "generate"]
    has_top: bool = False
    """Whether other likely tokens are told, too."""

    def line(self, **more: object) -> Json:
        """A piece; what is not said of it is left out, but for the text."""
        said = {name: value for name, value in more.items() if value}
        text, logprobs = said.pop("text", ""), said.pop("logprobs", None)
        if self.form == "chat":
            told: Json = {"message": {"role": "assistant", "content": text, **said}}
        else:
            told = {"response": text, **said}
        if logprobs:
            told["logprobs"] = logprobs
        return {"model": self.model, "created_at": now(), **told, "done": False}

    def last(self, reason: str, numbers: Json, **more: object) -> Json:
        return {**self.line(**more), "done": True, "done_reason": reason, **numbers}


@dataclass
class Answer:
    """Puts an answer together from the objects that an engine streams."""

    voice: Voice
    began: float
    """When the client's request came, by the monotonic clock."""
    headed: float
    """When the engine's response began."""
    reason: str | None = None
    unparsed: bool = False
    """Whether it does not keep to its template's format, and is given as it was written."""
    usage: Json = field(default_factory=dict)
    timings: Json = field(default_factory=dict)
    calls: dict[int, Json] = field(default_factory=dict)

    def take(self, event: Json) -> Iterator[Json]:
        """The lines that an object is worth."""
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
                yield self.voice.line(text=text, thinking=thinking, logprobs=logprobs)
            self.reason = choice.get("finish_reason") or self.reason
            self.unparsed = self.unparsed or choice.get(UNPARSED) is True

    def add_call(self, call: Json) -> None:
        index = call.get("index")
        known = self.calls.setdefault(
            index if type(index) is int else len(self.calls), {"id": "", "name": "", "said": ""}
        )
        function = mapped(call.get("function"))
        known["id"] += string(call.get("id"))
        known["name"] += string(function.get("name"))
        known["said"] += string(function.get("arguments"))

    def likely(self, choice: Json) -> list[Json]:
        tokens = listed(mapped(choice.get("logprobs")).get("content"))
        return [
            token_told(token)
            | ({"top_logprobs": [token_told(one) for one in listed(token.get("top_logprobs"))]}
               if self.voice.has_top else {})
            for token in tokens
        ]  # fmt: skip

    def end(self) -> Iterator[Json]:
        """The last lines. Raises ApiError when the engine has not come to an end."""
        if self.reason is None:
            raise ApiError(HTTPStatus.BAD_GATEWAY, "the engine's answer broke off")
        if self.calls:
            calls = [told_call(at, self.calls[at]) for at in sorted(self.calls)]
            yield self.voice.line(tool_calls=calls)
        more = {UNPARSED: True} if self.unparsed else {}
        reason = "length" if self.reason == "length" else "stop"
        yield self.voice.last(reason, {**self.numbers(), **more})

    def numbers(self) -> Json:
        """How many tokens, and how long they took, in nanoseconds."""
        timings = {name: number(value) for name, value in self.timings.items()}
        prompt_ms, predicted_ms = timings.get("prompt_ms", 0), timings.get("predicted_ms", 0)
        prompt = self.usage.get("prompt_tokens")
        if prompt is None:
            prompt = timings.get("cache_n", 0) + timings.get("prompt_n", 0)
        count = self.usage.get("completion_tokens", timings.get("predicted_n", 0))
        # the engine's response begins with the first token, after the prompt was read
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
    """What /infill and /completion stream, as a choice of OpenAI's."""
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


def told_call(index: int, call: Json) -> Json:
    """A tool call as Ollama has it. Raises ApiError for one that was not finished."""
    try:
        arguments = json.loads(call["said"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the model's call of {call['name']!r} has arguments that are no JSON object",
        )
    function = {"index": index, "name": call["name"], "arguments": arguments}
    return {"id": call["id"], "function": function}


def token_told(token: Json) -> Json:
    told = {"token": string(token.get("token")), "logprob": number(token.get("logprob"))}
    raw = token.get("bytes")
    return told | ({"bytes": raw} if raw else {})


def string(value: object) -> str:
    return value if isinstance(value, str) else ""


async def lines(chunks: AsyncIterator[bytes], answer: Answer) -> AsyncIterator[Json]:
    """The lines of an answer that comes as a stream of events. Raises ApiError when it fails."""
    reader = EventReader()
    async for chunk in chunks:
        for event in reader.add(chunk):
            for line in answer.take(event):
                yield line
    for line in answer.end():
        yield line


def joined(voice: Voice, said: list[Json]) -> Json:
    """All lines of an answer as one."""
    text, thinking = "", ""
    tool_calls: list[Json] = []
    logprobs: list[Json] = []
    for line in said:
        told = line.get("message", line)
        text += told["content" if voice.form == "chat" else "response"]
        thinking += told.get("thinking", "")
        tool_calls += told.get("tool_calls", [])
        logprobs += line.get("logprobs", [])
    whole = voice.line(text=text, thinking=thinking, tool_calls=tool_calls, logprobs=logprobs)
    return {**said[-1], **whole, "done": True}


def now() -> str:
    """The time as Ollama writes it."""
    return stamp(time.time_ns())


def stamp(ns: int) -> str:
    """Nanoseconds since 1970 in RFC 3339."""
    seconds, rest = divmod(ns, NS)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
