"""Prepares the texts of a request for llama-server.

A tokenizer may normalize texts in ways that llama.cpp does not know; a template may have switches
that an API names differently. Only requests that need it are changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.core.errors import EngineError
from exporter.core.gguf import GGUFFile
from exporter.llamacpp.header_tokens import special_texts
from exporter.llamacpp.normalizer import NORMALIZER, SPACE_PREFIX, normalizer, spaced
from runtime.engine.chat_format import AS_IT_IS, THINKING, ChatFormat, differences
from runtime.engine.llama_server import Server
from runtime.engine.openai_client import ask_json
from runtime.engine.own_template import FIELD, OwnTemplate, first_own, unusable

CHATS = frozenset(
    ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/apply-template",
     "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens",
     "/v1/responses/input_tokens")
)  # fmt: skip
"""Routes whose texts are rendered by the template."""
PROMPTS = ("prompt", "input_prefix", "input_suffix", "input", "content", "query", "documents",
           "texts", "target")  # fmt: skip
"""The fields in which other routes have their texts."""
TEXTS_WRITTEN = ("/v1/completions", "/completion", "/infill")
"""Routes that continue a text."""
VECTORS = ("/v1/embeddings", "/embedding")
"""Routes whose texts the engine always begins with BOS."""
SWITCHES = "chat_template_kwargs"
IN_OBJECTS = ("prompt_string", "text")
WITH_BOS = ("prompt", "content")
"""Fields of PROMPTS whose texts the engine begins with BOS."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
READS_THOUGHTS = re.compile(r"""[.'"](?:reasoning_content|reasoning|thinking)\b""")
TEXTS = ("text", "content", "output", "thinking")
"""Fields of a message's parts that hold texts or more parts."""
NFC = '{"type": "NFC"}'

Normalize = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Front:
    """Prepares the requests to one engine."""

    normalize: Normalize | None = None
    """The tokenizer's normalizer; None if the engine normalizes in the same way."""
    begin: Normalize | None = None
    """Adds the first space of a plain text, if the engine does not."""
    bos: str = ""
    """The BOS that a plain text begins with, if the engine does not add it."""
    drops_thoughts: bool = False
    """Whether the template ignores thoughts; llama-server may lose an answer with them."""
    own: OwnTemplate | None = None
    """The template that replaces the engine's."""

    def ready(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body for the engine's route."""
        if route in CHATS:
            return self.chat(body)
        ready = dict(body)
        for name in PROMPTS:
            if name in body:
                has_bos = route in VECTORS or (name in WITH_BOS and adds(body))
                bos = self.bos if has_bos else ""
                ready[name] = self.texts(body[name], bos, starts=name != "input_suffix")
        if self.own is not None and self.own.ends and route in TEXTS_WRITTEN:
            ready |= ended(body, self.own.ends)
        return ready

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a conversation's request."""
        ready = dict(body)
        if self.normalize is not None:
            for name in ("messages", "system", "input", "instructions"):
                if name in body:
                    ready[name] = normalized(body[name], self.normalize)
        messages = ready.get("messages")
        if self.drops_thoughts and isinstance(messages, list):
            ready["messages"] = [without_thoughts(message) for message in messages]
        given = body.get(SWITCHES)
        switches = thinking(body) | (given if isinstance(given, dict) else {})
        switches.pop(FIELD, None)  # only decant sets it
        if self.own is not None:
            ready[SWITCHES] = self.own.handed_over(switches)
        elif switches or isinstance(given, dict):
            ready[SWITCHES] = switches
        return ready

    def text(self, text: str, *, starts: bool = True) -> str:
        """Prepare a plain text; starts: whether it is the beginning of a prompt."""
        ready = self.normalize(text) if self.normalize else text
        return self.begin(ready) if starts and self.begin else ready

    def texts(self, value: object, bos: str, *, starts: bool) -> object:
        """Prepare a prompt in any of llama-server's forms; token ids stay as they are."""
        if isinstance(value, str):
            return (bos if starts else "") + self.text(value, starts=starts)
        if isinstance(value, dict):
            return {
                name: self.texts(one, bos, starts=starts) if name in IN_OBJECTS else one
                for name, one in value.items()
            }
        if isinstance(value, list):
            is_one = any(isinstance(one, int) for one in value)  # ids and texts of one prompt
            return [
                self.texts(one, bos, starts=starts and not (is_one and place))
                for place, one in enumerate(value)
            ]
        return value


PLAIN = Front()


@dataclass(frozen=True, slots=True)
class Fronts:
    """Prepares the requests to one engine, by the adapters that answer."""

    base: Front = PLAIN
    own: tuple[OwnTemplate | None, ...] = ()
    """Each adapter's template, by index."""

    def of(self, scales: Sequence[float]) -> Front:
        """The preparation for a mixture of adapters."""
        own = first_own(self.own, scales)
        if own is None:
            return self.base
        if unusable(own):
            return replace(self.base, own=own)
        return replace(self.base, drops_thoughts=drops_thoughts(own.format.template), own=own)


def adds(body: Mapping[str, Any]) -> bool:
    """Whether the engine adds special tokens to a text; /tokenize does so only on request."""
    return bool(body.get("add_special", "prompt" in body))


def front_of(header: GGUFFile, chat: ChatFormat = AS_IT_IS) -> Front:
    """The preparation of requests for a model. Raises ModelError for a damaged normalizer."""
    written = header.text(NORMALIZER)
    space = header.text(SPACE_PREFIX)
    return Front(
        normalize_between(written, header.path) if written else None,
        first_space(space, header.path) if space else None,
        chat.bos,
        drops_thoughts(chat.template),
    )


def ended(body: Mapping[str, Any], ends: Sequence[str]) -> dict[str, list[object]]:
    """The fields that make a text end at an adapter's end texts, too, even at special tokens."""
    found: dict[str, list[object]] = {}
    for name in ("stop", "preserved_tokens"):
        given = body.get(name)
        found[name] = [*(given if isinstance(given, list) else [given] if given else []), *ends]
    return found


def drops_thoughts(template: str | None) -> bool:
    """Whether a template that decant passes prints no thoughts."""
    return bool(template) and not READS_THOUGHTS.search(template or "")


def normalize_between(written: str, path: Path) -> Normalize:
    """The normalizer, applied between the special tokens in a text."""
    normalize = normalizer(written)
    if written == NFC:  # special tokens are in NFC already
        return normalize
    special = special_texts(path)
    if not special:
        return normalize
    named = re.compile("(" + "|".join(map(re.escape, special)) + ")")

    def between(text: str) -> str:
        parts = named.split(text)
        return "".join(part if n % 2 else normalize(part) for n, part in enumerate(parts))

    return between


def first_space(written: str, path: Path) -> Normalize:
    """A function that adds or drops a text's first space, except before a special token."""
    special = special_texts(path)

    def begin(text: str) -> str:
        return text if text.startswith(special) else spaced(text, written)

    return begin


def normalized(value: object, normalize: Normalize) -> object:
    """A text, part, message or list of them, with the texts in it normalized."""
    if isinstance(value, str):
        return normalize(value)
    if isinstance(value, list):
        if all(type(one) is int for one in value):  # a prompt's tokens
            return value
        return [normalized(one, normalize) for one in value]
    if isinstance(value, dict):
        fields = (*TEXTS, *THOUGHTS)
        return {
            name: normalized(one, normalize) if name in fields else one
            for name, one in value.items()
        }
    return value


def without_thoughts(message: object) -> object:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name not in THOUGHTS}


def thinking(body: Mapping[str, Any]) -> dict[str, bool]:
    """The template's switches for a request's thinking setting, in any API's form."""
    setting = body.get("thinking")  # Anthropic's
    kind = setting.get("type") if isinstance(setting, dict) else None
    if kind in ("enabled", "disabled"):
        return dict.fromkeys(THINKING, kind == "enabled")
    responses = body.get("reasoning")  # OpenAI's, of both its APIs
    effort = responses.get("effort") if isinstance(responses, dict) else None
    if "none" in (body.get("reasoning_effort"), effort):
        return dict.fromkeys(THINKING, False)
    return {}


def template_notes(server: Server, own: OwnTemplate | None) -> Iterator[str]:
    """Notes on an adapter's template, for the user."""
    if own is None:
        return
    if why := unusable(own):
        yield f"its chat template cannot be used: {why}"
        return
    if own.lost:
        several = len(own.lost) > 1
        yield (
            f"{', '.join(own.lost)} {'are not tokens' if several else 'is not a token'} of the"
            " base: tokenized as text"
        )
    yield from unlike(server, own.format, own)


def unlike(server: Server, chat: ChatFormat, own: OwnTemplate | None = None) -> Iterator[str]:
    """Notes on conversations that the engine renders differently from transformers."""
    prompts: list[str | None] = []
    for _, job, _ in chat.samples:
        body: dict[str, Any] = {"messages": list(job.messages)}
        if own is not None:
            body[SWITCHES] = own.handed_over({})
        if job.tools:
            body["tools"] = list(job.tools)
        try:
            prompts.append(str(ask_json(server, "/apply-template", body)["prompt"]))
        except (EngineError, KeyError):
            prompts.append(None)
    yield from differences(chat.samples, prompts, chat.added_bos)
