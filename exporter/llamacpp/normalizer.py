"""Text normalization that a tokenizer does and llama.cpp does not.

The export writes the missing steps into the GGUF; chat, serve and tokens apply them to a text
before llama.cpp reads it. This needs the `tokenizers` library, but not torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exporter.core.errors import ModelError
from exporter.llamacpp.normalizer_limits import problem_of

NORMALIZER = "decant.tokenizer.normalizer"
"""GGUF key: the missing steps in the form of tokenizer.json's "normalizer"; absent without any."""

SPACE_PREFIX = "decant.tokenizer.space_prefix"
"""GGUF key: how to treat the beginning of a raw text, see `spaced`; absent for no change."""
FIRST, ONCE = "first", "once"

SPACE = "\u2581"  # what sentencepiece writes for a space
CHAIN = "Sequence"
KNOWN = {
    CHAIN, "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
    "Precompiled", "Prepend", "Replace", "Strip", "StripAccents",
}  # fmt: skip

UNIGRAM = "t5"  # its name in tokenizer.ggml.model

Step = dict[str, Any]

ANY_SPACE_AS_SPACE: Step = {"type": "Replace", "pattern": {"Regex": r"\s"}, "content": " "}
"""Replaces other whitespace by a space. A charsmap does so; without one, llama.cpp knows only " ".
"""


def normalizer(written: str | None) -> Callable[[str], str]:
    """The function that prepares a text for llama.cpp; the identity where `written` is None.

    It applies to the text between special tokens. Raises ModelError for damaged or unknown steps.
    """
    if written is None:
        return str
    from tokenizers import Tokenizer

    bare: Step = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": read_steps(written), "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    normalize: Callable[[str], str] = Tokenizer.from_str(json.dumps(bare)).normalizer.normalize_str
    return normalize


def spaced(text: str, written: str | None) -> str:
    """A normalized raw text whose first space is corrected for llama.cpp.

    The text begins with no special token. written: the value of SPACE_PREFIX. "first": the
    tokenizer puts a space before a text that begins with none, and llama.cpp does not. "once":
    llama.cpp puts a space before every text, the tokenizer only before one that begins with none.
    """
    begins_with_space = text.startswith((" ", SPACE))
    if written == FIRST and text and not begins_with_space:
        return f" {text}"
    if written == ONCE and begins_with_space and len(text) > 1:
        return text[1:]
    return text


def read_steps(written: str) -> Step:
    """Parse the steps from JSON. Raises ModelError for anything else, and for costly steps."""
    hint = "export the model again with this version of decant"
    try:
        found = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{NORMALIZER} is no JSON: {error}", hint=hint) from error
    if not isinstance(found, dict):
        raise ModelError(f"{NORMALIZER} is {written[:60]!r}, which is no normalizer", hint=hint)
    unknown = sorted({str(step.get("type")) for step in flat(found)} - KNOWN)
    if unknown:
        raise ModelError(f"{NORMALIZER} has a step {unknown[0]!r}, which is unknown", hint=hint)
    if problem := problem_of(flat(found)):
        raise ModelError(
            f"{NORMALIZER} is refused: {problem}",
            hint="the tokenizer's normalizer is no usual one: is the model from a place you trust?",
        )
    return found


def missing_normalizer(tokenizer_json: Mapping[str, Any], model: str) -> str | None:
    """The steps of a tokenizer.json's normalizer that llama.cpp leaves out; None if there are none.

    model: the GGUF's tokenizer.ggml.model, which decides what llama.cpp does by itself.
    """
    whole = tokenizer_json.get("normalizer")
    steps = list(flat(whole)) if isinstance(whole, dict) else []
    rest = DONE_BY_LLAMA_CPP.get(model, all_of)
    kept = [left for step in steps if (left := rest(step)) is not None]
    if model == UNIGRAM and splits_at_whitespace(tokenizer_json) and not has_charsmap(steps):
        kept.append(ANY_SPACE_AS_SPACE)
    if not kept:
        return None
    return json.dumps(kept[0] if len(kept) == 1 else {"type": CHAIN, "normalizers": kept})


def splits_at_whitespace(tokenizer_json: Mapping[str, Any]) -> bool:
    pre = tokenizer_json.get("pre_tokenizer")
    inner = pre.get("pretokenizers") or [pre] if isinstance(pre, dict) else []
    return any(step.get("type") == "WhitespaceSplit" for step in inner)


def has_charsmap(steps: Iterable[Step]) -> bool:
    return any(step.get("type") == "Precompiled" for step in steps)


def flat(step: Mapping[str, Any]) -> Iterable[Step]:
    """The single steps of a normalizer, in order."""
    if step.get("type") != CHAIN:
        yield dict(step)
        return
    for inner in step.get("normalizers") or ():
        yield from flat(inner)


def all_of(step: Step) -> Step | None:
    """The step, unless it is ByteLevel (bytes as letters), which llama.cpp's BPE does."""
    return None if step["type"] == "ByteLevel" else step


def but_for_spaces(step: Step) -> Step | None:
    """The step, unless llama.cpp does it by itself: spaces written as ▁, and one put in front."""
    if step["type"] == "Prepend" and step.get("prepend") == SPACE:
        return None
    return None if is_space_escape(step) else step


def is_space_escape(step: Step) -> bool:
    return (
        step["type"] == "Replace"
        and step.get("pattern") == {"String": " "}
        and step.get("content") == SPACE
    )


def but_for_charsmap(step: Step) -> Step | None:
    """The step, unless llama.cpp's Unigram does it: charsmap, merging and stripping of spaces."""
    if step["type"] in ("Precompiled", "Strip"):
        return None
    merges = step["type"] == "Replace" and step.get("pattern") == {"Regex": " {2,}"}
    return None if merges else but_for_spaces(step)


def but_for_case(step: Step) -> Step | None:
    """The rest of a step after WordPiece, whose table lacks some decompositions (Hangul).

    WordPiece lowers letters and drops accents according to the settings. It gives the tokenizer's
    result for text that is decomposed (NFD) beforehand.
    """
    if step["type"] == "BertNormalizer":
        strips = step.get("strip_accents")
        strips = step.get("lowercase", True) if strips is None else strips
        return {"type": "NFD"} if strips else None
    return None if step["type"] in ("Lowercase", "StripAccents") else step


def but_for_lowercase(step: Step) -> Step | None:
    return None if step["type"] == "Lowercase" else step


DONE_BY_LLAMA_CPP: dict[str, Callable[[Step], Step | None]] = {
    "llama": but_for_spaces,
    "gemma4": but_for_spaces,
    UNIGRAM: but_for_charsmap,
    "bert": but_for_case,
    "whitespace": but_for_lowercase,
}
"""tokenizer.ggml.model -> the function that returns the rest of a step."""
