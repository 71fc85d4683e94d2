"""Translates the requests of Ollama's clients into requests to an engine.

pydantic is not used: it costs 8 MB of memory (the gateway has 37 MB) and 90 ms at the start, and
most of this module is translation. The checks are `text`, `objects` and `option`; their errors
have the wording of Ollama's server, which clients show.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from runtime.engine.chat_format import THINKING
from runtime.engine.media import image_kind
from runtime.gateway.api_errors import bad_request
from runtime.gateway.body import dumped

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds

CHAT, COMPLETE, INFILL, EMBED = (
    "/v1/chat/completions", "/v1/completions", "/infill", "/v1/embeddings",
)  # fmt: skip
INT32 = 2**31 - 1  # the largest 32-bit integer
TOP_LOGPROBS_MAX = 20  # as in Ollama's API
NUMBERS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "typical_p": ("typical_p", float),
    "seed": ("seed", int),
    "num_predict": ("max_tokens", int),
    "num_keep": ("n_keep", int),
    "repeat_penalty": ("repeat_penalty", float),
    "repeat_last_n": ("repeat_last_n", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}
"""Ollama's options: the engine's name, and the type. Other options concern loading a model, or are
obsolete: they are ignored."""
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
EFFORTS = ("low", "medium", "high", "max")


@dataclass(frozen=True, slots=True)
class Ability:
    """The abilities of the model that answers."""

    name: str
    """The name that the client gave."""
    context: int | None
    """The context that it was trained with, in tokens."""
    thinks: bool
    chats: bool = True
    """Whether it has a chat template."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an engine."""

    route: str
    body: Json
    has_top: bool = False
    """Whether the client wants the likeliest other tokens as well."""


def chat_question(body: Json, model: Ability) -> Question:
    """The engine's request for /api/chat. Raises ApiError."""
    request = shared(body, model)
    request["messages"] = messages(objects(body, "messages"))
    if tools := objects(body, "tools"):
        request["tools"] = tools
    add_format(request, body)
    add_thinking(request, body, model)
    count = add_logprobs(request, body)
    return Question(CHAT, request, bool(count))


def generate_question(body: Json, model: Ability) -> Question:
    """The request for /api/generate: a chat of one message, or a text to continue or fill.

    Raises ApiError.
    """
    if text(body, "template"):
        raise bad_request("template is not supported: the model's own is used")
    if body.get("context"):
        raise bad_request("context is not supported: /api/chat takes a whole conversation")
    if not model.chats and text(body, "system"):
        raise bad_request(f'"{model.name}" has no chat template, and no place for a system text')
    if body.get("raw") or body.get("suffix") or not model.chats:
        return plain_question(body, model)
    conversation: list[Json] = [{"role": "user", "content": text(body, "prompt")}]
    if body.get("images"):
        conversation[0]["images"] = body["images"]
    if system := text(body, "system"):
        conversation.insert(0, {"role": "system", "content": system})
    return chat_question({**body, "messages": conversation, "tools": None}, model)


def plain_question(body: Json, model: Ability) -> Question:
    if body.get("images"):
        raise bad_request("images are not supported with raw or suffix")
    request = shared(body, model)
    prompt, suffix = text(body, "prompt"), text(body, "suffix")
    if suffix:
        request |= {"input_prefix": prompt, "input_suffix": suffix}
    elif text(body, "system"):
        raise bad_request("raw mode does not support template, system, or context")
    else:
        request["prompt"] = prompt
    if (schema := wanted_format(body)) is not None:
        request["json_schema"] = schema
    count = logprob_count(body)
    if count is not None:
        request["n_probs"] = max(count, 1)
    return Question(INFILL if suffix else COMPLETE, request, bool(count))


def embed_question(body: Json) -> Question:
    """The request for /api/embed; an empty input only loads the model. Raises ApiError."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise bad_request("invalid input type")
    return Question(EMBED, {"input": texts, "encoding_format": "float"})


def shared(body: Json, model: Ability) -> Json:
    """The fields of all generating requests: streaming and sampling. Raises ApiError."""
    request: Json = {"stream": True, "stream_options": {"include_usage": True}}
    options = {} if body.get("options") is None else body["options"]
    if not isinstance(options, dict):
        raise bad_request("options must be an object")
    for name, (ours, kind) in NUMBERS.items():
        value = options.get(name)
        if value is not None:
            request[ours] = option(name, value, kind)
    if request.get("max_tokens", 0) < 0:  # negative: to the end of the context
        del request["max_tokens"]
    if "repeat_last_n" in request:  # the engine allocates memory for all of them
        room = model.context or 0
        last = request["repeat_last_n"]
        request["repeat_last_n"] = room if last < 0 else min(last, room) if room else last
    if (stops := options.get("stop")) is not None:
        request["stop"] = [stops] if isinstance(stops, str) else stops
        if not isinstance(request["stop"], list) or not all(
            isinstance(stop, str) for stop in request["stop"]
        ):
            raise bad_request('option "stop" must be of an array of strings')
    return request


def option(name: str, value: object, kind: type) -> float:
    word = "integer" if kind is int else "float32"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad_request(f'option "{name}" must be of type {word}')
    if kind is float:
        return float(value)
    whole = int(value)
    if name == "seed":  # Ollama takes longer seeds; a negative seed is random
        return whole % 2**31 if whole >= 0 else -1
    if abs(whole) > INT32:
        raise bad_request(f'option "{name}" must be of type {word}')
    return whole


def messages(given: list[Json]) -> list[Json]:
    """A conversation in OpenAI's form, in which tool results carry the ids of their calls."""
    conversation: list[Json] = []
    open_calls: list[tuple[str, str]] = []  # ids and function names of unanswered calls
    for message in given:
        one: Json = {"role": text(message, "role"), "content": content(message)}
        if thinking := text(message, "thinking"):
            one["reasoning_content"] = thinking
        if calls := objects(message, "tool_calls"):
            one["tool_calls"] = [
                tool_call(call, f"call_{len(conversation)}_{at}") for at, call in enumerate(calls)
            ]
            open_calls += [(call["id"], call["function"]["name"]) for call in one["tool_calls"]]
        if one["role"] == "tool":
            name = text(message, "tool_name") or text(message, "name")
            one["tool_call_id"] = text(message, "tool_call_id") or answered_call(open_calls, name)
            if name:
                one["name"] = name
        conversation.append(one)
    return conversation


def tool_call(call: Json, usual: str) -> Json:
    function = call.get("function")
    if not isinstance(function, dict):
        raise bad_request("a tool call has no function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, dict):
        arguments = dumped(arguments).decode()
    return {
        "id": text(call, "id") or usual,
        "type": "function",
        "function": {
            "name": text(function, "name"),
            "arguments": text({"arguments": arguments}, "arguments"),
        },
    }


def answered_call(open_calls: list[tuple[str, str]], name: str) -> str:
    """The id of the call that a tool result answers; removes it from the open calls."""
    found = next((call for call in open_calls if call[1] == name), None)
    found = found or next(iter(open_calls), None)
    if found is None:
        return ""
    open_calls.remove(found)
    return found[0]


def content(message: Json) -> str | list[Json]:
    plain = text(message, "content")
    images = message.get("images") or []
    if not images:
        return plain
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise bad_request("images must be an array of base64 strings")
    parts: list[Json] = [{"type": "text", "text": plain}] if plain else []
    return parts + [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
    ]


def data_url(image: str) -> str:
    packed = "".join(image.split())
    try:
        raw = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"an image is not base64: {error}") from error
    if (kind := image_kind(raw)) is None:
        raise bad_request("an image is not PNG, JPEG, GIF, BMP or WebP")
    return f"data:{kind};base64,{packed}"


def add_format(request: Json, body: Json) -> None:
    schema = wanted_format(body)
    if schema is not None:
        request["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}


def wanted_format(body: Json) -> Json | None:
    """The JSON schema of the answer; an empty one allows any object. Raises ApiError."""
    wanted = body.get("format")
    if wanted in (None, ""):
        return None
    if wanted == "json":
        return {}
    if isinstance(wanted, dict):
        return wanted
    raise bad_request('invalid format: expected "json" or a valid JSON Schema object')


def add_thinking(request: Json, body: Json, model: Ability) -> None:
    think = body.get("think")
    if think is None:
        return
    if not isinstance(think, bool) and think not in EFFORTS:
        raise bad_request(f"think must be true, false, or one of {', '.join(EFFORTS)}")
    if think and not model.thinks:
        raise bad_request(f'"{model.name}" does not support thinking')
    request["chat_template_kwargs"] = dict.fromkeys(THINKING, bool(think))
    if isinstance(think, str):
        request["reasoning_effort"] = think


def add_logprobs(request: Json, body: Json) -> int:
    """Request log-probabilities in a chat; returns the number of other likely tokens."""
    count = logprob_count(body)
    if count is None:
        return 0
    request |= {"logprobs": True, "top_logprobs": max(count, 1)}
    return count


def logprob_count(body: Json) -> int | None:
    """The number of other likely tokens; None without log-probabilities. Raises ApiError."""
    count = body.get("top_logprobs") or 0
    if type(count) is not int or not 0 <= count <= TOP_LOGPROBS_MAX:
        raise bad_request(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")
    return count if body.get("logprobs") else None


def wants_stream(body: Json) -> bool:
    """Whether to stream the answer, which is Ollama's default. Raises ApiError."""
    stream = body.get("stream")
    if stream is None:
        return True
    if not isinstance(stream, bool):
        raise bad_request("stream must be true or false")
    return stream


def keeps_s(body: Json) -> float | None:
    """`keep_alive` in seconds, from a number or a duration such as 1h30m; negative: for ever.

    Raises ApiError.
    """
    value = body.get("keep_alive")
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        if DURATION.fullmatch(value):
            whole = sum(float(number) * UNITS[unit] for number, unit in PART.findall(value))
            return -whole if value.startswith("-") else whole
        if re.fullmatch(r"[+-]?\d{1,15}", value):
            return float(value)
    raise bad_request("keep_alive must be a time such as 5m, 0 or -1")


def text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_request(f"{name} must be a string")
    return value


def objects(body: Mapping[str, Any], name: str) -> list[Json]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise bad_request(f"{name} must be an array of objects")
    return value
