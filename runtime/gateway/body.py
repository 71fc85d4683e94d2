"""Parses a request's body, checks it, and prepares it for an engine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from runtime.engine.adapters import Adapter
from runtime.engine.lora_scales import lora_vector
from runtime.engine.purpose import ROUTE, WHAT, purpose_of
from runtime.engine.request_texts import CHATS
from runtime.engine.template_choice import NO_TEMPLATE
from runtime.gateway.api_errors import bad_request
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.media_checks import refuse_media
from runtime.gateway.settings import Settings
from runtime.gateway.vectors import ROUTES as VECTORS
from runtime.gateway.vectors import ready_for_vectors
from runtime.scoring.score_route import SCORE

WITHHELD = ("lora", "id_slot", "n_discard", "cache_prompt", "backend_sampling")
"""Fields that affect other requests: with `backend_sampling` and a `top_k` above the vocabulary the
engine aborts."""
LOOKING_BACK = ("repeat_last_n", "dry_penalty_last_n")
"""Numbers of tokens that a penalty looks back at. The engine allocates memory for all of them: a
huge number in one request would take all memory."""
LOOK_BACK_MAX = 1 << 20  # tokens, for models that do not state their context
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
LIMIT_OF = {
    "/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens",
    "/completion": "n_predict", "/infill": "n_predict", "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}  # fmt: skip
"""The field that limits the answer when the client sets none of LIMITS."""
LISTED = ("prompt", "input", "content", "documents", "texts")
"""Fields with one text, or with a list of texts that are answered separately."""
WORD_MAX = 100_000  # characters
LONG_WORD = re.compile(rf"\S{{{WORD_MAX}}}")
ID_MAX = (1 << 31) - 1
"""The largest token id: llama.cpp's `llama_token` has 32 bits."""
HUGE_NUMBER = re.compile(rb"\d{19}|\d[eE]")
"""In every number that may be beyond the engine's range."""
ENGINE_INT = (-(1 << 63), (1 << 64) - 1)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError for anything else.

    As strict as the engine's parser: no NaN, and no numbers beyond its range. A body without long
    numbers and exponents cannot have such a number, and is parsed without looking at each.
    """
    checks: dict[str, Any] = {"parse_constant": refuse_number}
    if HUGE_NUMBER.search(body):
        checks |= {"parse_float": finite, "parse_int": fitting}
    try:
        found = json.loads(body.decode("utf-8"), **checks)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start}") from error
    except RecursionError as error:
        raise bad_request("the body is nested too deeply") from error
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise bad_request("the body must be a JSON object")
    return found


def refuse_wrong_ids(body: Mapping[str, Any], context: int | None) -> None:
    """Raise ApiError for more token ids than the context holds, and for ids beyond 32 bits.

    The engine refuses the former as well, after it has read them in a slot that others wait for;
    of the latter it takes the lower bits. context: None for any number.
    """
    for name in ("prompt", "input", "content", "tokens"):
        value = body.get(name)
        if not isinstance(value, list):
            continue
        if value and all(map(is_id, value)):
            value = [value]
        lists = [one for one in value if isinstance(one, list)]
        count = max(map(len, lists), default=0)
        if context is not None and name == "prompt" and count > context:
            raise bad_request(
                f"the prompt has {count} tokens, and the context holds {context}",
                code="context_length_exceeded",
            )
        largest = max(filter(is_id, (*value, *chain.from_iterable(lists))), default=0)
        if largest > ID_MAX:
            raise bad_request(f"{largest} is no token of this model")


def is_id(value: object) -> bool:
    return type(value) is int


def refuse_number(text: str) -> float:
    raise ValueError(f"{text[:40]} is not a number in JSON")


def finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else refuse_number(text)


def fitting(text: str) -> float:
    # llama-server reads larger numbers as floats, and answers them with 500
    least, most = ENGINE_INT
    number = int(text) if len(text) <= 20 else most + 1  # noqa: PLR2004 - digits of 2**64
    return number if least <= number <= most else refuse_number(text)


def dumped(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad_request("a text holds half of a surrogate pair") from error
    except RecursionError as error:
        raise bad_request("the body is nested too deeply") from error


def prepared(
    body: Mapping[str, Any],
    route: str,
    resolved: ResolvedModel,
    settings: Settings,
    *,
    can_say: bool,
) -> dict[str, Any]:
    """The body for the engine: without withheld fields, with limits and LoRA scales.

    can_say: whether requests to the engine set the scales. Raises ApiError for a request that
    the engine would answer wrongly.
    """
    refuse_without_answers(route, resolved)
    refuse_silent_failures(body)
    if route in VECTORS:
        body = ready_for_vectors(body, resolved.model.header)
    refuse_long_words(body, resolved)
    refuse_media(body, resolved, settings)
    kept = {
        name: value
        for name, value in body.items()
        if name not in WITHHELD or name in settings.allow_fields
    }
    if can_say and resolved.lora_scales and "lora" not in kept:
        kept |= lora_vector(resolved.lora_scales)
    if settings.max_tokens is not None:
        kept |= limited(kept, route, settings.max_tokens)
    return kept | within_context(kept, resolved)


def refuse_without_answers(route: str, resolved: ResolvedModel) -> None:
    """Raise ApiError, naming the right route, for an answer that the model cannot give."""
    purpose = purpose_of(resolved.model.header)
    if purpose != "answers" and (route in CHATS or route in LIMIT_OF or route == SCORE):
        raise bad_request(
            f"{resolved.id!r} {WHAT[purpose]}: ask {ROUTE[purpose]}", code="no_answers"
        )
    if route in CHATS and not resolved.can_chat:
        raise bad_request(
            f"{resolved.id!r} {NO_TEMPLATE}: ask /v1/completions, or give it a template:"
            " decant serve --chat-template NAME",
            code="no_chat_template",
        )


def applied(body: Mapping[str, Any], resolved: ResolvedModel) -> Sequence[float]:
    """The scales that choose the template: those of the body's `lora`, else of the model's name."""
    lora = body.get("lora")
    if not isinstance(lora, list) or lora == lora_vector(resolved.lora_scales)["lora"]:
        return resolved.template_scales
    pairs = [(one.get("id"), one.get("scale")) for one in lora if isinstance(one, dict)]
    scales = {number: scale for number, scale in pairs if isinstance(scale, int | float)}
    return [scales.get(number, 0.0) for number in range(len(resolved.lora_scales))]


def needed(body: Mapping[str, Any], resolved: ResolvedModel) -> Sequence[Adapter]:
    """The adapters of a request whose client may set `lora`."""
    scaled = zip(resolved.model.adapters, applied(body, resolved), strict=True)
    return tuple(dict.fromkeys((*resolved.needs, *(one for one, scale in scaled if scale))))


def within_context(body: Mapping[str, Any], resolved: ResolvedModel) -> dict[str, int]:
    header = resolved.model.header
    most = header.number(f"{header.architecture}.context_length") or LOOK_BACK_MAX
    return {
        name: most
        for name in LOOKING_BACK
        if isinstance(body.get(name), int | float) and body[name] > most
    }


def limited(body: Mapping[str, Any], route: str, most: int) -> dict[str, int]:
    limits = [name for name in LIMITS if body.get(name) is not None]
    if not limits:
        return {LIMIT_OF[route]: most} if route in LIMIT_OF else {}
    return {
        name: most for name in limits if isinstance(body[name], int) and not 0 <= body[name] <= most
    }


def refuse_silent_failures(body: Mapping[str, Any]) -> None:
    if body.get("echo") and body.get("logprobs"):
        raise bad_request("`echo` with `logprobs` goes with /v1/completions alone")
    if "messages" in body and not isinstance(body["messages"], list):
        raise bad_request("`messages` must be a list")
    if "prompt" in body and not isinstance(body["prompt"], str | list | dict):
        raise bad_request("`prompt` must be a text, a list or, for llama.cpp, an object")


def refuse_long_words(body: Mapping[str, Any], resolved: ResolvedModel) -> None:
    """Raise ApiError for a word that would crash the engine.

    Many pre-tokenizers use std::regex, which recurses for each character of a word;
    `runtime.process.kept_processes.STACK` is large enough for words of WORD_MAX characters.
    """
    if resolved.model.header.text("tokenizer.ggml.model") != "gpt2":
        return
    for text in texts(body):
        if len(text) > WORD_MAX and LONG_WORD.search(text):
            raise bad_request(f"a text holds a word of more than {WORD_MAX} characters")


def texts(body: Mapping[str, Any]) -> Iterator[str]:
    """All texts in a body that could be tokenized."""
    todo: list[object] = [body]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            if not one.startswith("data:"):
                yield one
        elif isinstance(one, dict):
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)


def cost(body: Mapping[str, Any]) -> int:
    """The number of slots that a request takes: one for each answer to each text."""
    answers = body.get("n", body.get("n_cmpl", 1))
    number = answers if isinstance(answers, int) and answers > 0 else 1
    return int(number) * max(1, *(texts_in(body.get(name)) for name in LISTED))


def texts_in(value: object) -> int:
    """The number of texts in a field; a list with token ids in it is one text."""
    if isinstance(value, list) and value and not any(isinstance(one, int) for one in value):
        return len(value)
    return 1
