"""The chat template that comes with an adapter, used for its answers in place of the base's.

llama-server gets it with each request (the patch `own_template`), so that one engine answers with
adapters of different templates, side by side. If an adapter's template, special tokens and ends of
turn equal its base's, no template is passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from exporter.core.errors import ModelError, TemplateRefusedError
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.inputs.header_prompts import DEFAULT, AdapterPrompts, read_prompts
from exporter.llamacpp.header_tokens import (
    ENDS_BY_TEXT,
    special_texts,
    special_tokens,
    stamp,
    token_texts,
)
from exporter.llamacpp.normalizer import FIRST, SPACE_PREFIX
from runtime.engine.adapters import Adapter
from runtime.engine.chat_format import (
    ENGINE_KNOWS,
    ChatFormat,
    Facts,
    begun,
    format_of,
    templates_of,
    today,
)

FIELD = "decant_template"
"""The key of chat_template_kwargs from which the patched llama-server takes a template."""
TOOL_USE = "tool_use"
TOO_MUCH = "it takes more than"
"""The beginning of `render_all`'s refusal of a template that it stopped."""
ENDING = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


@dataclass(frozen=True, slots=True)
class OwnTemplate:
    """An adapter's chat template, written in its base's tokens."""

    facts: Facts
    ends: tuple[str, ...]
    """Texts that end an answer, besides the tokens that end the base's."""
    base: Path
    lost: tuple[str, ...] = ()
    """Special tokens that the base's vocabulary lacks."""

    @property
    def format(self) -> ChatFormat:
        """How conversations are rendered; the first access takes a moment."""
        facts = replace(self.facts, day=today(self.facts.plain + self.facts.tool_use))
        return begun(format_of(facts), facts, self.base)

    def handed_over(self, switches: Mapping[str, Any]) -> dict[str, Any]:
        """The engine's chat_template_kwargs; switches: the request's own.

        Raises ModelError for a template that takes too much time or memory.
        """
        if why := unusable(self):
            raise ModelError(
                f"the chat template cannot be used: {why}", hint="--chat-template names another"
            )
        found, tokens = self.format, dict(self.facts.tokens)
        brought = {
            "template": found.template,
            "bos_token": tokens.get("bos_token", ""),
            "eos_token": tokens.get("eos_token", ""),
            "thinks": found.thinks,
            "ends": all_ends(self),
        }
        return {**dict(found.variables), **switches, FIELD: brought}


@lru_cache(maxsize=256)
def unusable(own: OwnTemplate) -> str:
    """Why no engine may render its template; empty if engines may."""
    try:
        samples = own.format.samples
    except ModelError as error:
        return error.message
    why = samples[0][2].refusal if samples else ""
    return why if why.startswith(TOO_MUCH) else ""


@lru_cache(maxsize=256)
def all_ends(own: OwnTemplate) -> list[str]:
    """Its end texts, and the mark that its template puts behind an answer if that differs.

    A model that was trained on a mark which is not a token of its vocabulary spells it out.
    """
    end = own.format.end
    is_new = bool(end) and end not in own.ends and not ends_base(end, read_gguf(own.base))
    return [*own.ends, *([end] if is_new else [])]


def handed_over_template(base: Path, chosen: str | None = None) -> OwnTemplate | None:
    """A model's template as an OwnTemplate, for an engine that does not start with it."""
    header = read_gguf(base)
    plain, tool_use = (chosen, "") if chosen else templates_of(header)
    tokens = special_tokens(header)
    return OwnTemplate(facts_of(header, (plain, tool_use), tokens), (), base) if plain else None


def facts_of(base: GGUFFile, templates: tuple[str, str], tokens: Mapping[str, str]) -> Facts:
    """The facts of templates that the engine gets with each request."""
    return Facts(
        *templates,
        tuple(tokens.items()),
        adds_bos=False,
        adds_eos=False,
        puts_space=base.text(SPACE_PREFIX) == FIRST,
        is_chosen=True,
        engine=tuple((name, tokens.get(name, "")) for name in ENGINE_KNOWS),
    )


def own_template(adapter: Path, base: Path, chosen: str | None = None) -> OwnTemplate | None:
    """The template of an adapter's GGUF; None if its prompts are made as its base's are.

    chosen: a template that the user has named, which replaces those of both files. Raises
    ModelError for damaged headers.
    """
    return own_template_of(adapter, stamp(adapter), base, stamp(base), chosen)


def own_templates(
    adapters: Sequence[Adapter], base: Path, chosen: str | None = None
) -> tuple[OwnTemplate | None, ...]:
    """The template of each adapter of a model. Raises ModelError for damaged headers."""
    return tuple(own_template(adapter.path, base, chosen) for adapter in adapters)


@lru_cache(maxsize=256)
def own_template_of(
    adapter: Path, changed: object, base: Path, base_changed: object, chosen: str | None
) -> OwnTemplate | None:
    del changed, base_changed
    prompts, header = read_prompts(read_gguf(adapter)), read_gguf(base)
    if prompts.is_empty:
        return None
    put, lost = renamed(prompts, header)
    before = (chosen, "") if chosen else templates_of(header)
    plain, tool_use = (chosen, "") if chosen else chosen_of(prompts, before)
    texts = put(plain), put(tool_use)
    tokens = {name: put(text) for name, text in prompts.tokens.items()} or special_tokens(header)
    ends = tuple(end for end in map(put, prompts.ends) if not ends_base(end, header))
    facts = facts_of(header, texts, tokens)
    is_same = texts == before and not ends and has_tokens_of(header, tokens, facts.names)
    return OwnTemplate(facts, ends, base, lost) if plain and not is_same else None


def chosen_of(prompts: AdapterPrompts, base: tuple[str, str]) -> tuple[str, str]:
    """The templates for conversations without and with tools; an empty one is absent."""
    if not prompts.templates:
        return base
    plain, tools = (prompts.templates.get(name, "") for name in (DEFAULT, TOOL_USE))
    if plain or tools:
        return plain or tools, tools if plain else ""
    return next(iter(prompts.templates.values())), ""


def renamed(
    prompts: AdapterPrompts, base: GGUFFile
) -> tuple[Callable[[str], str], tuple[str, ...]]:
    """A function that writes a text in the base's tokens, and the tokens that the base lacks."""
    here = token_texts(base, prompts.added.values())
    names, lost = dict[str, str](), list[str]()
    for text, number in prompts.added.items():
        other = here.get(number)
        if other == text:
            continue
        if other is not None and other in special_texts(base.path):
            names[text] = other
        else:
            lost.append(text)
    if not names:
        return lambda text: text, tuple(lost)
    longest_first = sorted(names, key=len, reverse=True)
    found = re.compile("|".join(map(re.escape, longest_first)))
    return lambda text: found.sub(lambda one: names[one[0]], text), tuple(lost)


def ends_base(text: str, base: GGUFFile) -> bool:
    """Whether llama.cpp ends the base's answers at a token of this text."""
    ids = [number for key in ENDING if (number := base.number(key)) is not None]
    if text in token_texts(base, ids).values():
        return True
    return text in ENDS_BY_TEXT and text in special_texts(base.path)


def has_tokens_of(base: GGUFFile, tokens: Mapping[str, str], names: frozenset[str]) -> bool:
    """Whether the special tokens that a template uses equal the base's."""
    known = special_tokens(base)
    return all(known.get(name) == text for name, text in tokens.items() if name in names)


def first_own(own: Sequence[OwnTemplate | None], scales: Sequence[float]) -> OwnTemplate | None:
    """The template for a mixture of adapters.

    It is that of the first adapter with a template and a scale above 0.
    """
    return next((one for one, scale in zip(own, scales, strict=False) if one and scale > 0), None)


def template_refused(name: str, error: TemplateRefusedError) -> str:
    """The warning for a template with which llama-server does not start."""
    why = next((line for line in error.message.splitlines() if "emplate" in line), error.message)
    return f"{name}: llama.cpp cannot parse its answers: they stay plain text ({why.strip()})"
