"""Special tokens named in a GGUF's header, and those that llama.cpp adds by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from exporter.core.gguf import Array, GGUFFile, read_gguf, read_texts

TOKENS = "tokenizer.ggml.tokens"
SPECIAL = "decant.tokenizer.special"
"""GGUF key with JSON: special tokens by template names, if the keys of ids name others."""
MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
# template name -> key in the GGUF; "seperator" is the format's spelling
TEMPLATE_TOKENS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask",
}  # fmt: skip
BOS_BY_MODEL = ("llama", "bert")
BOS_BY_PRE = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken", "chameleon",
)  # fmt: skip
"""Models and pre-tokenizers whose texts begin with BOS by default (llama-vocab.cpp)."""

ENDS_BY_TEXT = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
))  # fmt: skip
"""Token texts that llama.cpp treats as an end of generation in every vocabulary."""
SPECIAL_KINDS = (3, 4)  # llama.h: control and user-defined tokens
CONTROL_KINDS = (3,)
VOCABULARY_MAX = 1 << 21  # tokens; more than any vocabulary has


def adds_bos(gguf: GGUFFile) -> bool:
    """Whether llama.cpp puts BOS before a text by itself."""
    flag = gguf.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(flag, bool):
        return flag
    return gguf.text(MODEL) in BOS_BY_MODEL or gguf.text(PRE) in BOS_BY_PRE


def adds_eos(gguf: GGUFFile) -> bool:
    """Whether llama.cpp puts EOS after a text by itself."""
    return gguf.metadata.get("tokenizer.ggml.add_eos_token") is True


def special_tokens(gguf: GGUFFile) -> dict[str, str]:
    """Texts of the special tokens, by their template names such as bos_token."""
    try:
        stored = json.loads(gguf.text(SPECIAL) or "null")
    except (ValueError, RecursionError):
        stored = None
    if isinstance(stored, dict):
        return {str(name): text for name, text in stored.items() if isinstance(text, str)}
    return tokens_by_id(gguf)


def tokens_by_id(gguf: GGUFFile) -> dict[str, str]:
    """Texts of the special tokens from the keys of ids alone, as llama.cpp reads them."""
    ids = {
        f"{name}_token": gguf.number(f"tokenizer.ggml.{key}_token_id")
        for name, key in TEMPLATE_TOKENS.items()
    }
    texts = token_texts(gguf, [id_ for id_ in ids.values() if id_ is not None])
    return {name: texts[id_] for name, id_ in ids.items() if id_ is not None and texts.get(id_)}


def token_texts(gguf: GGUFFile, ids: Iterable[int]) -> dict[int, str]:
    """Token texts by id; ids outside the vocabulary are left out."""
    tokens = gguf.metadata.get(TOKENS)
    if not isinstance(tokens, Array):
        return {}
    wanted = {id_ for id_ in ids if 0 <= id_ < tokens.length}
    if all(id_ < len(tokens.items) for id_ in wanted):
        return {id_: str(tokens.items[id_]) for id_ in wanted}
    return texts_at(gguf.path, stamp(gguf.path), frozenset(wanted))


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and modification time, which change when it is replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=64)
def texts_at(path: Path, written: tuple[int, int], ids: frozenset[int]) -> dict[int, str]:
    del written
    return read_texts(path, TOKENS, ids)


def special_texts(path: Path) -> tuple[str, ...]:
    """The special tokens of a GGUF's vocabulary, longest first."""
    return special_texts_of(path, stamp(path), SPECIAL_KINDS)


def control_texts(path: Path) -> tuple[str, ...]:
    """The special tokens that llama.cpp recognizes only on request, longest first."""
    return special_texts_of(path, stamp(path), CONTROL_KINDS)


@lru_cache(maxsize=8)
def special_texts_of(
    path: Path, written: tuple[int, int], wanted: tuple[int, ...]
) -> tuple[str, ...]:
    del written
    metadata = read_gguf(path, keep_items=VOCABULARY_MAX).metadata
    tokens, kinds = metadata.get(TOKENS), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, Array) or not isinstance(kinds, Array):
        return ()
    pairs = zip(tokens.items, kinds.items, strict=False)
    found = (str(token) for token, kind in pairs if kind in wanted and token)
    return tuple(sorted(found, key=len, reverse=True))
