"""The limits of a request's content, in one table for all routes and APIs.

Each row is content that costs an engine time or memory in one step, while other requests wait.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from exporter.core.errors import InputError
from exporter.core.near_names import did_you_mean
from runtime.gateway.api_errors import bad_request

Body = Mapping[str, Any]
HELD = ("content", "tool_calls", "images", "output")
"""Fields of messages and their parts that hold lists."""
GRAMMAR_PART = re.compile(
    r"""#[^\n]*|"(?:\\.|[^"\\])*(?:"|\\?\Z)|(?P<cls>\[(?:\\.|[^\]\\])*(?:\]|\\?\Z)|\.)""", re.DOTALL
)
"""A comment, a text or a character class of a grammar; one without an end goes to the end, so that
the time is linear."""
PATTERN_CLASS = re.compile(r"[\[.]|\\[dwsDWS]")
DIGITS = 15  # digits of the largest limit


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may hold, by kind of content."""

    body: int = 2 << 20
    """Bytes of a body when no model takes images."""
    media_body: int = 16 << 20
    """Bytes of a body when a model takes images."""
    values: int = 1 << 19
    """Numbers, texts, lists and objects in a body, counted by its commas and brackets."""
    prompts: int = 256
    inputs: int = 2048
    """Texts to embed or to rank: OpenAI's limit."""
    messages: int = 2048
    parts: int = 4096
    """Parts of all messages, including tool calls."""
    tools: int = 256
    n: int = 128
    """Answers to one prompt: OpenAI's limit."""
    stops: int = 64
    biases: int = 1024
    breakers: int = 64
    grammar_bytes: int = 64 << 10
    classes: int = 128
    """Character classes in a grammar and in the patterns of schemas: the engine may try each with
    every token of the vocabulary, while it tries equal plain characters together."""
    schema_nodes: int = 16384
    """Values in all schemas of a request, including those of its tools."""
    schema_depth: int = 64
    """Nesting of a schema: each level is a grammar rule that is tried with every token."""
    properties: int = 256
    """Properties of one object in a schema: time grows with the cube of the optional ones."""
    pixels: int = 1 << 26
    """Pixels of one decoded image."""
    total_pixels: int = 1 << 27
    """Pixels of all images of a request, which an engine decodes before it uses the first."""
    audio_s: int = 3600
    """Seconds of all recordings of a request, which an engine decodes before it uses the first."""
    items: int = 1024
    """Items of any other list."""
    logprobs: int = 1 << 18
    """Log-probabilities in one answer with `echo`: the tokens' and those of the likeliest ones."""
    scales: int = 4
    """Engines for client-chosen scales, on routes where each choice needs a separate engine."""
    adapters: int = 1024
    """Adapters of all models, beyond which a request or a watched folder adds none."""


def limits_of(texts: Sequence[str]) -> Limits:
    """The limits with changes of the form `NAME=NUMBER`. Raises InputError."""
    known = [field.name for field in fields(Limits)]
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise InputError(
                f"there is no limit {name!r}",
                hint=did_you_mean(name, known, f"the limits: {', '.join(known)}"),
            )
        if not re.fullmatch(rf"\d{{1,{DIGITS}}}", number.strip(), re.ASCII):
            raise InputError(
                f"the limit {text!r} has no number", hint=f"example: --limit {name}=1000"
            )
        found[name] = int(number)
    return replace(Limits(), **found)


def refuse_too_many(body: Body, limits: Limits) -> None:
    """Raise ApiError for a body above a limit."""
    for name, what, count in COUNTED:
        most = getattr(limits, name)
        if (found := count(body)) > most:
            raise bad_request(
                f"the request has {found} {what}, and this server takes {most}",
                code="too_many",
            )
    refuse_large_schemas(body, limits)
    refuse_long_lists(body, limits)


def prompts(body: Body) -> int:
    """The number of texts in `prompt` or `target`; a list of token ids is one text."""
    value = body.get("prompt")
    if isinstance(value, list):
        others = body.get("target")
        lists = (value, others if isinstance(others, list) else [])
        return max(sum(1 for one in some if type(one) is not int) for some in lists)
    media = value.get("multimodal_data") if isinstance(value, dict) else None
    return length(media)


def inputs(body: Body) -> int:
    """The number of texts in the longest list other than `prompt`."""
    return max(
        sum(1 for one in value if type(one) is not int) if isinstance(value, list) else 0
        for value in (body.get(name) for name in ("input", "content", "documents", "texts"))
    )


def parts(body: Body) -> int:
    """The number of message parts and tool calls, including nested ones."""
    fields = (body.get("messages"), body.get("input"))
    todo = [one for value in fields if isinstance(value, list) for one in value]
    todo.append({"content": body.get("system")})
    count = 0
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            for name in HELD:
                if isinstance(value := one.get(name), list):
                    count += len(value)
                    todo.extend(value)
    return count


def answers(body: Body) -> int:
    """The number of answers to each prompt that the request asks for."""
    counts = (body.get(name) for name in ("n", "n_cmpl", "best_of"))
    return max((int(n) for n in counts if isinstance(n, int | float)), default=0)


def stops(body: Body) -> int:
    return max(length(body.get("stop")), length(body.get("stop_sequences")), option(body, "stop"))


def option(body: Body, name: str) -> int:
    """The length of one of Ollama's options."""
    options = body.get("options")
    return length(options.get(name)) if isinstance(options, dict) else 0


def grammar(body: Body) -> int:
    text = body.get("grammar")
    return len(text.encode("utf-8", errors="replace")) if isinstance(text, str) else 0


def classes(body: Body) -> int:
    """The number of character classes ([a-z], [^"], `.`) in the grammar and in patterns."""
    text = body.get("grammar")
    patterns = (
        node["pattern"]
        for schema in schemas(body)
        for node in nodes(schema)
        if isinstance(node, dict) and isinstance(node.get("pattern"), str)
    )
    parts = GRAMMAR_PART.finditer(text) if isinstance(text, str) else ()
    in_grammar = sum(1 for part in parts if part["cls"])
    return in_grammar + sum(len(PATTERN_CLASS.findall(pattern)) for pattern in patterns)


def length(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def schemas(body: Body) -> Iterator[Any]:
    """All fields with a schema for the answer or for tool calls."""
    for name in ("json_schema", "response_format", "format", "text", "output_config", "tools"):
        if isinstance(value := body.get(name), list | dict):
            yield value


def schema_nodes(body: Body) -> int:
    return sum(1 for schema in schemas(body) for _ in nodes(schema))


def nodes(value: Any) -> Iterator[Any]:
    """A value and all values nested in it."""
    return (one for _, one in leveled_nodes(value))


def leveled_nodes(value: Any) -> Iterator[tuple[int, Any]]:
    """A value and all values nested in it, each with its level; the value has level 1."""
    todo = [(1, value)]
    while todo:
        level, one = todo.pop()
        yield level, one
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        todo.extend((level + 1, inner) for inner in inside)


def schema_depth(body: Body) -> int:
    return max((level for schema in schemas(body) for level, _ in leveled_nodes(schema)), default=0)


Count = Callable[[Body], int]
COUNTED: tuple[tuple[str, str, Count], ...] = (
    ("prompts", "prompts", prompts),
    ("inputs", "inputs", inputs),
    ("messages", "messages", lambda body: length(body.get("messages"))),
    ("parts", "message parts", parts),
    ("tools", "tools", lambda body: length(body.get("tools"))),
    ("n", "answers to each prompt", answers),
    ("stops", "stop texts", stops),
    ("biases", "token biases", lambda body: length(body.get("logit_bias"))),
    ("breakers", "DRY sequence breakers", lambda body: length(body.get("dry_sequence_breakers"))),
    ("grammar_bytes", "bytes of grammar", grammar),
    ("classes", "character classes", classes),
    ("schema_nodes", "values in schemas", schema_nodes),
    ("schema_depth", "levels in a schema", schema_depth),
)
"""Each limit with its name in errors and the function that counts."""
COUNTED_LISTS = frozenset(
    (
        "prompt",
        "target",
        "input",
        "content",
        "documents",
        "texts",
        "messages",
        "tools",
        "tokens",
        "images",
    )
)
"""Lists with a separate limit, or with the tokens of one text."""


def refuse_large_schemas(body: Body, limits: Limits) -> None:
    for schema in schemas(body):
        for node in nodes(schema):
            held = node.get("properties") if isinstance(node, dict) else None
            if length(held) > limits.properties:
                raise bad_request(
                    f"an object in a schema has {length(held)} properties, and this server takes"
                    f" {limits.properties}",
                    code="too_many",
                )


def refuse_long_lists(body: Body, limits: Limits) -> None:
    for name, value in body.items():
        if isinstance(value, list) and name not in COUNTED_LISTS and len(value) > limits.items:
            raise bad_request(
                f"{name[:80]!r} has {len(value)} items, and this server takes {limits.items}",
                code="too_many",
            )
