"""Corrects a GGUF's tokenizer keys to match the tokenizer as transformers loads it.

llama.cpp's converter reads the files by itself; where its result differs from transformers', this
module sets the keys again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from exporter.convert.sentencepiece_pieces import charsmap, merges_spaces
from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError
from exporter.core.events import Note, Report, Warn
from exporter.inputs.tokenizer import (
    LoadedTokenizer,
    first_ids,
    space_before,
    template_tokens,
    templates_of,
)
from exporter.llamacpp.header_tokens import ENDS_BY_TEXT, SPECIAL, TEMPLATE_TOKENS
from exporter.llamacpp.normalizer import NORMALIZER, SPACE, SPACE_PREFIX, missing_normalizer

KEY = "tokenizer.ggml."
SENTENCES, WORDPIECE, UNIGRAM, BYTES, GEMMA4 = "llama", "bert", "t5", "gpt2", "gemma4"
KINDS = {SENTENCES, WORDPIECE, UNIGRAM, BYTES, GEMMA4}
"""Values of tokenizer.ggml.model."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Values of tokenizer.ggml.token_type."""
TEMPLATE, TEMPLATES, DEFAULT = "tokenizer.chat_template", "tokenizer.chat_templates", "default"
BASE_MODEL = (
    "neither base nor adapter has a chat template: it is a base model, for plain completion;"
    " to chat with it, pass --chat-template NAME to `decant chat` or `decant serve`"
)
PHI3, PHI3_KEEPS = ("phi-3", "phi3"), {"<unk>", "<s>", "<|endoftext|>"}
"""Names of Phi-3 models, and the tokens that keep adjacent spaces in them."""
LETTERS = frozenset(ascii_letters + digits)  # characters of a template's name in a GGUF


def settle(model: Any, loaded: LoadedTokenizer, folder: Path, report: Report) -> None:
    """Correct the token keys that the converter's `model` wrote to match transformers."""
    writer = getattr(model, "impl", model).gguf_writer
    kind = value(writer, "model")
    if kind not in KINDS:
        return
    templates = templates_of(loaded)
    settle_types(writer, loaded, model.does_token_look_special)
    settle_normalizer(writer, loaded, kind)
    settle_spaces(writer, loaded, kind, in_chats=bool(templates))
    if kind == WORDPIECE:  # llama.cpp always puts [CLS] and [SEP] around a text
        settle_case(writer, loaded)
    else:
        settle_first_and_last(writer, loaded)
        settle_fillers(writer, loaded)
        settle_end_tokens(writer, loaded, eos_ids(folder), report)
    settle_templates(writer, templates)
    settle_template_tokens(writer, loaded, "\n".join(templates.values()))
    settle_strips(writer, loaded, kind, report)


def say_base_model(model: Any, report: Report) -> None:
    """Report a model that generates text and has no template for a chat."""
    writer = getattr(model, "impl", model).gguf_writer
    kind = value(writer, "model")
    if kind in KINDS and is_base_model(model, writer, kind):
        report(Note(BASE_MODEL))


def value(writer: Any, name: str) -> Any:
    """The value that the converter wrote for tokenizer.ggml.NAME; None without one."""
    found = writer.kv_data[0].get(KEY + name)
    return None if found is None else found.value


def put(writer: Any, key: str, new: bool | int | str | bytes | None) -> None:
    """Replace the value of a key; None removes it."""
    writer.remove_key(key)
    match new:
        case bool():
            writer.add_bool(key, new)
        case int():
            writer.add_uint32(key, new)
        case str():
            writer.add_string(key, new)
        case bytes():
            writer.add_array(key, new)
        case None:
            pass


def is_base_model(model: Any, writer: Any, kind: str) -> bool:
    """Whether the model generates text and has no template for a chat."""
    names = model.hparams.get("architectures") or ()
    writes = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    gives_vectors = any(key.endswith(".pooling_type") for key in writer.kv_data[0])
    has_template = any(key.startswith(TEMPLATE) for key in writer.kv_data[0])
    return kind != WORDPIECE and writes and not gives_vectors and not has_template


def settle_types(
    writer: Any, loaded: LoadedTokenizer, looks_special: Callable[[str], bool]
) -> None:
    """Set texts and types of added tokens that the converter missed."""
    tokens, types = value(writer, "tokens"), value(writer, "token_type")
    for number, token in loaded.added.items():
        if number < len(tokens) and types[number] in (NORMAL, UNUSED):
            is_control = token.special or looks_special(token.content)
            types[number] = CONTROL if is_control else USER_DEFINED
            text = token.content if is_control else token.content.replace(SPACE, " ")
            tokens[number] = text.encode() if isinstance(tokens[number], bytes) else text


def settle_normalizer(writer: Any, loaded: LoadedTokenizer, kind: str) -> None:
    parts = {name: loaded.part(name) for name in ("normalizer", "pre_tokenizer")}
    put(writer, NORMALIZER, missing_normalizer(parts, kind))


def settle_spaces(writer: Any, loaded: LoadedTokenizer, kind: str, *, in_chats: bool) -> None:
    """Set whether llama.cpp puts a space before texts, or the caller that prepares them."""
    prefix, first = space_before(loaded, in_chats=in_chats)
    if kind == SENTENCES:
        put(writer, KEY + "add_space_prefix", prefix)
    elif kind != BYTES:
        return
    put(writer, SPACE_PREFIX, first)


def settle_unigram(model: Any, loaded: LoadedTokenizer) -> None:
    """Set the keys that the converter reads from sentencepiece's file, or guesses without one."""
    writer = getattr(model, "impl", model).gguf_writer
    if value(writer, "model") != UNIGRAM:
        return
    prefix, _ = space_before(loaded, in_chats=False)
    put(writer, KEY + "add_space_prefix", prefix)
    put(writer, KEY + "remove_extra_whitespaces", merges_spaces(loaded.written))
    put(writer, KEY + "precompiled_charsmap", charsmap(loaded.written) or None)


def settle_case(writer: Any, loaded: LoadedTokenizer) -> None:
    """Set whether letters are lowered and lose accents; without the keys, llama.cpp does both."""
    lowers = strips = False
    for step in loaded.steps("normalizer"):
        match step:
            case {"type": "BertNormalizer", "lowercase": lower, "strip_accents": strip}:
                lowers, strips = lower, lower if strip is None else strip
            case {"type": "Lowercase"}:
                lowers = True
            case {"type": "StripAccents"}:
                strips = True
            case _:
                pass
    put(writer, KEY + "normalizer.lowercase", bool(lowers))
    put(writer, KEY + "normalizer.strip_accents", bool(strips))


def settle_first_and_last(writer: Any, loaded: LoadedTokenizer) -> None:
    """Set the tokens before and after a text, if llama.cpp can add them."""
    size = len(value(writer, "tokens"))
    for name, ids in zip(("bos", "eos"), first_ids(loaded), strict=True):
        if len(ids) > 1 or any(number >= size for number in ids):
            continue  # the converter's keys stay
        role = ids[0] if ids else loaded.special(name)
        if role is not None and role < size and (ids or name == "eos" or missing(writer, name)):
            put(writer, f"{KEY}{name}_token_id", role)
        put(writer, f"{KEY}add_{name}_token", bool(ids))


def settle_fillers(writer: Any, loaded: LoadedTokenizer) -> None:
    """Set the tokenizer's padding, separator and mask: a config may name other tokens."""
    size = len(value(writer, "tokens"))
    keys = {"pad": "padding", "sep": "seperator", "mask": "mask"}  # sic: the format's spelling
    for name, key in keys.items():
        role = loaded.special(name)
        if role is not None and role < size:
            put(writer, f"{KEY}{key}_token_id", role)


def missing(writer: Any, name: str) -> bool:
    return value(writer, f"{name}_token_id") is None


def settle_end_tokens(
    writer: Any, loaded: LoadedTokenizer, others: Iterable[int], report: Report
) -> None:
    """Set every token that ends an answer, in three keys; llama.cpp knows some by their text."""
    tokens, types = value(writer, "tokens"), value(writer, "token_type")
    known = {value(writer, f"{name}_token_id") for name in ("eos", "eot", "eom")}
    own = loaded.special("eos")
    for end in dict.fromkeys([*([] if own is None else [own]), *others]):
        if end in known or not 0 <= end < len(tokens) or types[end] == NORMAL:
            continue
        text = tokens[end].decode() if isinstance(tokens[end], bytes) else tokens[end]
        if text in ENDS_BY_TEXT:
            continue
        free = next((name for name in ("eot", "eom") if missing(writer, name)), None)
        if free is None:
            report(Warn(f"`{text}` ends answers, but llama.cpp has no place for so many such"))
            continue
        put(writer, f"{KEY}{free}_token_id", end)
        known.add(end)


def eos_ids(folder: Path) -> Iterator[int]:
    """The tokens that end an answer according to generation_config.json and config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json_object(path, error=CheckpointError, hint="copy the base's files again")
        text = config.get("text_config")
        for part in (config, text if isinstance(text, dict) else {}):
            found = part.get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            yield from (n for n in ids if isinstance(n, int) and not isinstance(n, bool))


def settle_strips(writer: Any, loaded: LoadedTokenizer, kind: str, report: Report) -> None:
    """Make tokens that absorb adjacent spaces do so in llama.cpp, else report it.

    llama.cpp has no key for that, but imitates Phi-3 if the model's name contains "phi-3"; a
    fine-tune whose name contains it by chance must not get other tokens.
    """
    mask = loaded.special("mask")  # never part of a text
    taking = {
        token.content: token.rstrip and not (token.lstrip or token.single_word)
        for number, token in loaded.added.items()
        if number != mask and (token.lstrip or token.rstrip or token.single_word)
    }
    named = writer.kv_data[0].get("general.name")
    name = str(named.value) if named else ""
    if not taking:
        if any(phi in name.lower() for phi in PHI3):
            put(writer, "general.name", re.sub("(?i)phi-?3", "Phi_3", name))
        return
    others = {token.content for token in loaded.added.values()} - taking.keys()
    if kind == SENTENCES and all(taking.values()) and others == PHI3_KEEPS and "</s>" in taking:
        if not any(phi in name.lower() for phi in PHI3):
            put(writer, "general.name", f"{name} {PHI3[0]}")
        return
    first = min(taking)
    report(
        Note(
            f"in this tokenizer `{first}` takes the spaces beside it or is found as a whole word"
            f" only ({len(taking)} such tokens), for which a GGUF has no place: llama.cpp may cut"
            " a text with it otherwise"
        )
    )


def settle_template_tokens(writer: Any, loaded: LoadedTokenizer, templates: str) -> None:
    """Write the special tokens that templates name, if the GGUF's ids stand for other tokens."""
    tokens, written = value(writer, "tokens"), dict[str, str]()
    for name, key in TEMPLATE_TOKENS.items():
        number = value(writer, f"{key}_token_id")
        if number is not None and number < len(tokens):
            text = tokens[number]
            written[f"{name}_token"] = text.decode() if isinstance(text, bytes) else text
    wanted = template_tokens(loaded)
    named = {name for name in (*wanted, *written) if name in templates}
    if any(wanted.get(name) != written.get(name) for name in named):
        put(writer, SPECIAL, json.dumps(wanted, ensure_ascii=False))


def settle_templates(writer: Any, templates: Mapping[str, str]) -> None:
    """Write every chat template, in a fixed order."""
    held = writer.kv_data[0].get(TEMPLATES)
    names = set(held.value if held else ())
    for name, text in templates.items():
        plain = "".join(letter if letter in LETTERS else "_" for letter in name)
        if plain == DEFAULT:
            put(writer, TEMPLATE, text)
        elif plain:
            names.add(plain)
            put(writer, f"{TEMPLATE}.{plain}", text)
    if names:
        writer.remove_key(TEMPLATES)
        writer.add_array(TEMPLATES, sorted(names))
