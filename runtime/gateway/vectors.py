"""Requests for embeddings: the model's prompts, the vectors' length and dimensions."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.convert.embedder import DEFAULT_PROMPT, PROMPTS
from exporter.core.gguf import GGUFFile
from runtime.gateway.api_errors import bad_request

ROUTES = ("/v1/embeddings", "/embedding")
PROMPT_NAME = "prompt_name"
"""Field of a request: names the model's prompt that precedes each text; "" for none."""
LENGTH = "embd_normalize"
"""llama-server's field: 2 scales each vector to length 1, -1 leaves it unscaled."""
AS_IT_IS = -1


def ready_for_vectors(body: Mapping[str, Any], header: GGUFFile) -> dict[str, Any]:
    """The body for the engine, with the prompt before each text.

    Raises ApiError for a prompt that the model lacks, or that cannot precede the input.
    """
    ready = {name: value for name, value in body.items() if name not in (PROMPT_NAME, "dimensions")}
    size_of(body)
    for name in ("input", "content"):
        if name in ready:
            ready[name] = prompted(ready[name], body.get(PROMPT_NAME), header)
    return ready


def keeps_length(body: Mapping[str, Any]) -> bool:
    """Whether vectors keep the model's length, instead of length 1."""
    return body.get(LENGTH) == AS_IT_IS


def prompted(value: Any, name: object, header: GGUFFile) -> Any:
    """One text or a list of texts, each after the named prompt.

    name: None takes the model's default, which most models lack. Raises ApiError for a prompt
    before token ids or images.
    """
    prompt = find_prompt(name, header)
    if not prompt:
        return value
    if isinstance(value, str):
        return prompt + value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [prompt + one for one in value]
    if name is None:
        return value
    raise bad_request(f"{PROMPT_NAME!r} goes with texts, not with tokens or images")


def find_prompt(name: object, header: GGUFFile) -> str:
    """The prompt before each text. Raises ApiError for an unknown name."""
    written = header.text(PROMPTS)
    known = json.loads(written) if written else {}
    if name is None:
        name = header.text(DEFAULT_PROMPT) or ""
    if name == "":
        return ""
    if not isinstance(name, str) or name not in known:
        has = f"this model has {', '.join(map(repr, known))}" if known else "this model has none"
        raise bad_request(f"there is no prompt {str(name)[:80]!r}: {has}")
    return str(known[name])


def size_of(body: Mapping[str, Any]) -> int | None:
    """The requested number of values per vector; None for all. Raises ApiError."""
    size = body.get("dimensions")
    if size is None:
        return None
    if type(size) is not int or size < 1:
        raise bad_request("`dimensions` must be a positive number")
    return size


def shortened(answer: dict[str, Any], size: int, *, as_it_is: bool) -> dict[str, Any]:
    """OpenAI's list of vectors, each cut to `size` values and scaled to length 1.

    as_it_is: do not scale. Raises ApiError when the vectors have fewer values.
    """
    entries = []
    for entry in answer.get("data", []):
        held = entry["embedding"]
        values = unpacked(held) if isinstance(held, str) else held
        if size > len(values):
            raise bad_request(
                f"`dimensions` is {size}, and this model's vectors have {len(values)}"
            )
        cut = values[:size] if as_it_is else normed(values[:size])
        entries.append({**entry, "embedding": packed(cut) if isinstance(held, str) else cut})
    return {**answer, "data": entries}


def normed(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def unpacked(text: str) -> list[float]:
    """The values in OpenAI's base64: float32, little-endian."""
    raw = base64.b64decode(text)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def packed(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
