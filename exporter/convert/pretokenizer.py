"""Finds llama.cpp's pre-tokenizer that splits texts as a tokenizer does.

The converter recognizes it by the hash of one long text's ids. A tokenizer with added words gives
other ids where the text contains one, and a retrained one gives others throughout; both still split
by a pattern that llama.cpp may know.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from exporter.convert.pretokenizer_patterns import GPT2, NAMES, SUFFIX, Cuts
from exporter.convert.upstream_hooks import Hook
from exporter.core.errors import UnsupportedError
from exporter.inputs.tokenizer import LoadedTokenizer

ANY = "default"  # for WordPiece and Unigram, where llama.cpp ignores it
SHOWN = 200  # characters of a pattern in a message
# (?i:'s|'t|'re|'ve|'m|'ll|'d), in its various spellings
SUFFIXES = re.compile(r"\(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\)")


METHOD = "get_vocab_base_pre"
NEEDLESS = ("tokenizer.model", "add_bos_token")
"""Parts of errors about a file or a setting that a byte-level tokenizer does not need: the tokens
around a text are set later (tokenizer_keys.py).
"""


def pre_tokenizer_found(model_class: Any, loaded: LoadedTokenizer | None) -> Hook:
    """Hook that finds pre-tokenizers also for tokenizers whose hash the converter does not know.

    model_class: the converter's class of any text model.
    """
    owner = next(base for base in reversed(model_class.__mro__) if METHOD in vars(base))
    original = vars(owner)[METHOD]

    def find(self: Any, tokenizer: Any) -> str:
        try:
            return by_hash(self, original, tokenizer)
        except NotImplementedError:
            return found_otherwise(partial_hash(self, original), tokenizer, loaded)

    return Hook(owner, {METHOD: find})


def byte_level_taken(model_class: Any, loaded: LoadedTokenizer | None) -> Hook:
    """Hook that writes a byte-level tokenizer if the class expects tokenizer.model.

    Some classes expect it unless tokenizer_config.json names an older class of transformers
    (Phi-4-mini), or read a setting that transformers 5 no longer writes (DeepSeek-V3.2).
    """
    if loaded is None or not is_byte_level(loaded):
        return Hook(model_class, {})
    original = model_class.set_vocab

    def set_vocab(self: Any) -> None:
        try:
            original(self)
        except (FileNotFoundError, ValueError, AssertionError) as error:
            if not any(part in str(error) for part in NEEDLESS):
                raise
            self._set_vocab_gpt2()

    return Hook(model_class, {"set_vocab": set_vocab})


def is_byte_level(loaded: LoadedTokenizer) -> bool:
    """Whether a tokenizer merges letters that stand for bytes, as GPT-2's does."""
    steps = loaded.steps("pre_tokenizer")
    return loaded.kind == "BPE" and any(step.get("type") == "ByteLevel" for step in steps)


def by_hash(model: Any, original: Callable[[Any, Any], str], tokenizer: Any) -> str:
    """The converter's result, without the long warning that it logs beside an error."""
    logger = logging.getLogger("hf-to-gguf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return original(model, tokenizer)
    finally:
        logger.setLevel(level)


def partial_hash(model: Any, original: Callable[[Any, Any], str]) -> Callable[[Any], str]:
    return lambda tokenizer: by_hash(model, original, tokenizer)


def found_otherwise(
    hashed: Callable[[Any], str], tokenizer: Any, loaded: LoadedTokenizer | None
) -> str:
    """The name found without the added words, else by the pattern.

    Raises UnsupportedError, with the pattern, if llama.cpp has no equivalent.
    """
    if loaded is None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise unknown("custom Python code")
        loaded = LoadedTokenizer(tokenizer)
    kind = json.loads(loaded.backend.model.__getstate__()).get("type")
    if kind != "BPE":
        return ANY
    for bare in without_words(loaded):
        try:
            return hashed(bare)
        except NotImplementedError:
            continue
    return by_pattern(loaded)


def without_words(loaded: LoadedTokenizer) -> Iterator[Any]:
    """Encoders without the tokenizer's added words: first with added spaces, then without them."""
    from tokenizers import Tokenizer

    words = {number for number, token in loaded.added.items() if not token.special}
    spaces = {number for number in words if not loaded.added[number].content.strip()}
    for leave in (words - spaces, words) if spaces else (words,):
        if leave:
            written = loaded.written
            kept = [token for token in written["added_tokens"] if token["id"] not in leave]
            yield Encoder(Tokenizer.from_str(json.dumps({**written, "added_tokens": kept})))


class Encoder:
    """An encoder with the interface that the converter uses of transformers' tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def by_pattern(loaded: LoadedTokenizer) -> str:
    """llama.cpp's name for the pattern. Raises UnsupportedError without one."""
    model = json.loads(loaded.backend.model.__getstate__())
    cuts = cuts_of(loaded.steps("pre_tokenizer"))
    whole_words = bool(model.get("ignore_merges"))
    if cuts is not None and (names := NAMES.get(cuts)):
        return names[whole_words if len(names) > 1 else 0]
    raise unknown(json.dumps(loaded.part("pre_tokenizer"), ensure_ascii=False))


def unknown(cut_by: str) -> UnsupportedError:
    return UnsupportedError(
        f"llama.cpp has no pre-tokenizer that cuts texts into words as this tokenizer does:"
        f" {cut_by[:SHOWN]}{'…' if len(cut_by) > SHOWN else ''}",
        hint="it cannot become a GGUF; `--to safetensors` writes the merged model for transformers",
    )


def cuts_of(steps: Sequence[dict[str, Any]]) -> Cuts | None:
    """The patterns that split a text, in order; None for a step without a llama.cpp equivalent."""
    cuts: list[str] = []
    for place, step in enumerate(steps):
        found = cut_of(step)
        if found is None or (place and step.get("add_prefix_space")):  # a space before each word
            return None
        cuts += found
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    return tuple(cuts) if is_bytes else None


def cut_of(step: dict[str, Any]) -> list[str] | None:
    """The pattern of one step in normalized spelling; empty if it splits nothing."""
    match step:
        case {"type": "ByteLevel"}:
            return [GPT2] if step.get("use_regex", True) else []
        case {"type": "Digits", "individual_digits": individual}:
            return [r"\p{N}" if individual else r"\p{N}+"]
        case {"type": "Punctuation", "behavior": behavior}:
            return [f"punctuation {behavior}"]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            way = step.get("behavior"), bool(step.get("invert"))
            # equivalent for patterns that cover every letter, as all of these do
            return [spelled(pattern)] if way in {("Isolated", False), ("Removed", True)} else None
        case _:
            return None


def spelled(pattern: str) -> str:
    """A pattern with normalized apostrophe suffixes and line ends."""
    pattern = pattern.replace("\r", "\\r").replace("\n", "\\n")
    return SUFFIXES.sub(SUFFIX, pattern)
