"""Converts tokenizer.json to sentencepiece's tokenizer.model, which the converter reads.

A trainer saves tokenizer.json alone. The converter takes pieces and scores from tokenizer.model
only; from tokenizer.json it makes equal scores for all tokens, which splits texts differently.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

from exporter.llamacpp.normalizer import flat, is_space_escape

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
UNIGRAM = "Unigram"
ALL_BYTES = 256  # byte tokens of a vocabulary that falls back to bytes
ADDED_SCORE = -1000.0  # the converter's score of added tokens, which are matched before merges
MERGES_SPACES = {"Regex": " {2,}"}
NO_STEPS = {"type": "Sequence", "normalizers": ()}
NO_CHARSMAP = (1024).to_bytes(4, "little") + bytes(1025)
"""A charsmap of 256 empty nodes, which changes nothing."""


def looks_like_pieces(written: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json writes a space as ▁ and unknown characters as bytes."""
    model = written.get("model") or {}
    if model.get("type") == UNIGRAM:
        return True
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and marks_spaces(written)


def marks_spaces(written: Mapping[str, Any]) -> bool:
    escapes = any(map(is_space_escape, flat(written.get("normalizer") or NO_STEPS)))
    return escapes or any(step.get("type") == "Metaspace" for step in pre_tokenizers(written))


def pre_tokenizers(written: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The steps of a tokenizer.json's pre_tokenizer, in order."""
    whole = written.get("pre_tokenizer") or {}
    yield from whole.get("pretokenizers") or (() if not whole else (whole,))


def as_pieces(written: Mapping[str, Any], *, unknown: int | None, prefix: bool) -> bytes:
    """A tokenizer.model with the tokens of `written`, a tokenizer.json.

    unknown: id of the token for unknown text; prefix: whether a space is put before a text.
    """
    from sentencepiece import sentencepiece_model_pb2 as schema

    types = schema.ModelProto.SentencePiece
    model = written["model"]
    is_unigram = model["type"] == UNIGRAM
    scores = unigram_scores(model) if is_unigram else merge_scores(model)
    special = {token["id"]: token for token in written.get("added_tokens") or ()}
    texts = {number: text for text, number, _ in scores} | {
        number: token["content"] for number, token in special.items()
    }
    by_number = {number: score for _, number, score in scores}
    falls_back = sum(map(is_byte, texts.values())) == ALL_BYTES and bool(model.get("byte_fallback"))
    proto = schema.ModelProto()
    unknown = unknown if unknown in texts else min(special, default=0)
    for number in range(max(texts, default=-1) + 1):
        text, kind = texts.get(number), types.NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", types.UNUSED
        elif number == unknown:
            kind = types.UNKNOWN
        elif falls_back and is_byte(text):
            kind = types.BYTE
        elif number in special:
            kind = types.CONTROL if special[number].get("special") else types.USER_DEFINED
        score = ADDED_SCORE if number in special else by_number.get(number, ADDED_SCORE)
        proto.pieces.add(piece=text, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = trainer.UNIGRAM if is_unigram else trainer.BPE
    trainer.vocab_size, trainer.byte_fallback = len(proto.pieces), falls_back
    describe_spaces(proto.normalizer_spec, written, prefix=prefix)
    data: bytes = proto.SerializeToString()
    return data


def is_byte(text: str) -> bool:
    return BYTE.fullmatch(text) is not None


def merge_scores(model: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Each token with its id and a score that makes sentencepiece merge in the order of `merges`.

    sentencepiece merges the pair whose token has the highest score: minus the rank of the first
    merge that makes it. No pair makes a token of one letter; its score is never used.
    """
    vocabulary: Mapping[str, int] = model["vocab"]
    first: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        first.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    last = len(model["merges"])
    return [
        (text, number, -float(first.get(text, last + number)))
        for text, number in vocabulary.items()
    ]


def unigram_scores(model: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    return [(text, number, score) for number, (text, score) in enumerate(model["vocab"])]


def describe_spaces(spec: Any, written: Mapping[str, Any], *, prefix: bool) -> None:
    """Set the treatment of spaces and the charsmap for other characters."""
    spec.add_dummy_prefix = prefix
    spec.remove_extra_whitespaces = merges_spaces(written)
    spec.precompiled_charsmap = charsmap(written)
    spec.name = "nmt_nfkc" if spec.precompiled_charsmap else "identity"


def merges_spaces(written: Mapping[str, Any]) -> bool:
    """Whether several spaces count as one, and spaces at the ends as none."""
    steps = flat(written.get("normalizer") or NO_STEPS)
    splits = any(step.get("type") == "WhitespaceSplit" for step in pre_tokenizers(written))
    return splits or any(step.get("pattern") == MERGES_SPACES for step in steps)


def charsmap(written: Mapping[str, Any]) -> bytes:
    """sentencepiece's table of character replacements; empty without one."""
    for step in flat(written.get("normalizer") or NO_STEPS):
        if step.get("type") == "Precompiled":
            return base64.b64decode(step.get("precompiled_charsmap") or "")
    return b""


def with_charsmap(written: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json whose normalizer is a charsmap alone, as the converter expects for XLM-R."""
    table = base64.b64encode(charsmap(written) or NO_CHARSMAP).decode()
    return {**written, "normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}
