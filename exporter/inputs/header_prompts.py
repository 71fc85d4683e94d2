"""Reads how an adapter's prompts are made from its GGUF's metadata.

A trainer saves tokenizer and chat template beside the adapter, and a base may have others, or no
template at all. Templates have the same keys as in a model; `adapter_prompts.py` writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from exporter.core.gguf import GGUFFile
from exporter.llamacpp.header_tokens import SPECIAL

TEMPLATE, DEFAULT = "tokenizer.chat_template", "default"
ENDS, ADDED = "decant.tokenizer.ends", "decant.tokenizer.added"
"""GGUF keys of JSON: the texts that end an answer; the base's ids of the tokens that occur in
templates, ends and special tokens.
"""
KEYS = (SPECIAL, ENDS, ADDED)


@dataclass(frozen=True, slots=True)
class AdapterPrompts:
    """Templates, special tokens and ends of an adapter."""

    templates: dict[str, str] = field(default_factory=dict)
    """Templates by name; "default" is used unless another is requested."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Special tokens by their template names, such as bos_token."""
    ends: tuple[str, ...] = ()
    """Texts of the tokens that end an answer."""
    added: dict[str, int] = field(default_factory=dict)
    """Ids of the added tokens in templates, `tokens` and `ends`."""

    @property
    def is_empty(self) -> bool:
        return not (self.templates or self.ends)


def read_prompts(header: GGUFFile) -> AdapterPrompts:
    """The prompts in a GGUF adapter's metadata; foreign or malformed values are ignored."""
    start = f"{TEMPLATE}."
    templates = {
        key.removeprefix(start) if key != TEMPLATE else DEFAULT: text
        for key, text in header.metadata.items()
        if (key == TEMPLATE or key.startswith(start)) and isinstance(text, str) and text
    }
    tokens, ends, added = (held(header, key) for key in KEYS)
    return AdapterPrompts(
        templates,
        {str(name): text for name, text in pairs(tokens) if isinstance(text, str)},
        tuple(text for text in (ends if isinstance(ends, list) else ()) if isinstance(text, str)),
        {str(text): number for text, number in pairs(added) if type(number) is int},
    )


def held(header: GGUFFile, key: str) -> object:
    try:
        return json.loads(header.text(key) or "null")
    except (ValueError, RecursionError):
        return None


def pairs(value: object) -> list[tuple[object, object]]:
    return list(value.items()) if isinstance(value, dict) else []
