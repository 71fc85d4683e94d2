"""Which of llama.cpp's pre-tokenizers cuts texts into words as a tokenizer does.

The converter knows it by the hash of the ids of one long text. A tokenizer to which words were
added gives other ids where the text holds one, and one that was trained anew gives others
throughout; both still cut by a pattern that may be known.
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

ANY = "default"  # what WordPiece and Unigram are given: llama.cpp does not look at it
SHOWN = 200  # characters of a pattern that a message shows
# (?i:'s|'t|'re|'ve|'m|'ll|'d), in the ways in which it is written
SUFFIXES = re.compile(r"\(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\)")


METHOD = "get_vocab_base_pre"
NEEDLESS = ("tokenizer.model", "add_bos_token")
"""What some of the converter's classes ask of a folder, and a byte-level tokenizer needs not: the
tokens around a text are settled later (tokenizer_keys.py)."""


def pre_tokenizer_found(model_class: Any, loaded: LoadedTokenizer | None) -> Hook:
    """Have the converter find the pre-tokenizer of more tokenizers than it knows by hash.

    model_class: of the converter's, for any text model.
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
    """Have the converter write a byte-level tokenizer where its class looks for tokenizer.model.

    Some classes do unless tokenizer_config.json names an older class of transformers' (Phi-4-mini),
    or want a setting in it that transformers 5 no longer has (DeepSeek-V3.2).
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
    """Whether a tokenizer merges the letters that stand for bytes, as GPT-2's does."""
    steps = loaded.steps("pre_tokenizer")
    return loaded.kind == "BPE" and any(step.get("type") == "ByteLevel" for step in steps)


def by_hash(model: Any, original: Callable[[Any, Any], str], tokenizer: Any) -> str:
    """The converter's own answer, without the page of warnings that it logs beside an error."""
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
    """The name without the added words, else by the pattern.

    Raises UnsupportedError, with the pattern, when llama.cpp has none like it.
    """
    if loaded is None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise unknown("code of its own")
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
    """Encoders like the tokenizer without its added words: all but spaces, then these too."""
    from tokenizers import Tokenizer

    words = {number for number, token in loaded.added.items() if not token.special}
    spaces = {number for number in words if not loaded.added[number].content.strip()}
    for leave in (words - spaces, words) if spaces else (words,):
        if leave:
            written = loaded.written
            kept = [token for token in written["added_tokens"] if token["id"] not in leave]
            yield Encoder(Tokenizer.from_str(json.dumps({**written, "added_tokens": kept})))


class Encoder:
    """Gives ids, as the converter asks transformers' tokenizer for them."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep a tokenizer of the tokenizers library."""
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def by_pattern(loaded: LoadedTokenizer) -> str:
    """llama.cpp's name for the pattern. Raises UnsupportedError when it has none."""
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
    """What cuts a text, step by step; None for a step that llama.cpp has nothing like."""
    cuts: list[str] = []
    for place, step in enumerate(steps):
        found = cut_of(step)
        if found is None or (place and step.get("add_prefix_space")):  # a space before each word
            return None
        cuts += found
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    return tuple(cuts) if is_bytes else None


def cut_of(step: dict[str, Any]) -> list[str] | None:
    """The pattern of one step, in one spelling; none where it cuts nothing."""
    match step:
        case {"type": "ByteLevel"}:
            return [GPT2] if step.get("use_regex", True) else []
        case {"type": "Digits", "individual_digits": individual}:
            return [r"\p{N}" if individual else r"\p{N}+"]
        case {"type": "Punctuation", "behavior": behavior}:
            return [f"punctuation {behavior}"]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            way = step.get("behavior"), bool(step.get("invert"))
            # the second is the same for a pattern that leaves no letter out, as all of these
            return [spelled(pattern)] if way in {("Isolated", False), ("Removed", True)} else None
        case _:
            return None


def spelled(pattern: str) -> str:
    """A pattern with the suffixes after an apostrophe written in one way, and line ends too."""
    pattern = pattern.replace("\r", "\\r").replace("\n", "\\n")
    return SUFFIXES.sub(SUFFIX, pattern)
