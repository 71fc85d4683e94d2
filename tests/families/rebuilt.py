"""Tokenizers as transformers saves them, made from llama.cpp's vocabularies or trained here.

llama.cpp keeps of a tokenizer its pieces, merges and the name of its pattern. The patterns are
the families' own, as their tokenizer.json has them; the converter's hash of a text tells whether
a rebuilt tokenizer cuts as the original does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exporter.core.gguf import Array, GGUFFile, read_gguf

EVERYTHING = 1 << 24  # items of an array that are read
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama_token_type
SPACE = "\u2581"
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = GPT2 | {"use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
METASPACE = {
    "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True,
}  # fmt: skip
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


PRETOKENIZERS = {
    "gpt-2": GPT2,
    "starcoder": sequence(DIGITS, GPT2),
    "command-r": sequence(DIGITS, GPT2),
    "falcon": sequence(
        PUNCTUATION, GPT2, DIGITS | {"individual_digits": False}, split("[0-9][0-9][0-9]")
    ),
    "qwen35": sequence(split(QWEN35), BYTES),
    "cl100k": sequence(split(CL100K), BYTES),
    "bloom": sequence(split(BLOOM), BYTES),
    "tekken": sequence(split(TEKKEN), BYTES),
}


def byte_level(vocabulary: Path, pretokenizer: str, folder: Path, **settings: Any) -> None:
    """A byte-level BPE tokenizer.json from a vocabulary with merges."""
    header = read_gguf(vocabulary, keep_items=EVERYTHING)
    tokens, kinds = items(header, "tokens"), list(items(header, "token_type"))
    for at, text in enumerate(tokens):
        if text.startswith("[PAD"):  # llama.cpp's, where the embedding has more rows
            kinds[at] = UNUSED
    model = {
        "type": "BPE",
        "vocab": {text: at for at, text in enumerate(tokens) if kinds[at] != UNUSED},
        "merges": [merge.split(" ") for merge in items(header, "merges")],
    }
    added = [
        special(at, text, is_special=kinds[at] == CONTROL)
        for at, text in enumerate(tokens)
        if kinds[at] in (CONTROL, USER_DEFINED)
    ]
    save(folder, model, added, pre_tokenizer=PRETOKENIZERS[pretokenizer], decoder=GPT2, **settings)


def sentencepiece_model(vocabulary: Path, folder: Path, **settings: Any) -> None:
    """tokenizer.model from a sentencepiece vocabulary with scores, and what names its tokens."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    header = read_gguf(vocabulary, keep_items=EVERYTHING)
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(items(header, "tokens"))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    columns = (items(header, name) for name in ("tokens", "scores", "token_type"))
    for text, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def unigram(
    vocabulary: Path, folder: Path, order: Callable[[list[Any]], list[Any]], **settings: Any
) -> None:
    """A unigram tokenizer.json with sentencepiece's compiled normalizer.

    order: puts the pieces, [text, score], into the family's order.
    """
    header = read_gguf(vocabulary, keep_items=EVERYTHING)
    charsmap = bytes(value & 255 for value in items(header, "precompiled_charsmap"))
    pieces = [
        [text, score]
        for text, score in zip(items(header, "tokens"), items(header, "scores"), strict=True)
        if not text.startswith("[PAD")  # llama.cpp's, where the embedding has more rows
    ]
    ordered = order(pieces)
    texts = [text for text, _ in ordered]
    model = {
        "type": "Unigram",
        "unk_id": texts.index("<unk>"),
        "vocab": ordered,
        "byte_fallback": False,
    }
    added = [special(texts.index(text), text) for text in settings.pop("special")]
    save(
        folder, model, added,
        normalizer={
            "type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()
        },
        pre_tokenizer=sequence(
            {"type": "WhitespaceSplit"},
            METASPACE,
        ),
        decoder=METASPACE,
        **settings,
    )  # fmt: skip


def wordpiece(vocabulary: Path, folder: Path, **settings: Any) -> None:
    """BERT's vocab as tokenizer.json: lower case, accents stripped."""
    header = read_gguf(vocabulary, keep_items=EVERYTHING)
    texts = [
        text if text.startswith("[") and text.endswith("]") and len(text) > 2
        else text[1:] if text.startswith(SPACE)
        else f"##{text}"
        for text in items(header, "tokens")
    ]  # fmt: skip
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ids = {name: texts.index(name) for name in names}
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {text: at for at, text in enumerate(texts)},
    }  # fmt: skip
    save(
        folder, model, [special(ids[name], name) for name in names],
        normalizer={
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={
            "type": "BertProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]
        },
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        **settings,
    )  # fmt: skip


def gemma4(vocabulary: Path, folder: Path, **settings: Any) -> None:
    """BPE over characters with ▁ for spaces and bytes for what is not in the vocabulary."""
    header = read_gguf(vocabulary, keep_items=EVERYTHING)
    tokens, kinds = items(header, "tokens"), items(header, "token_type")
    vocab = {text: at for at, text in enumerate(tokens)}
    merges = [pair for pair in (cut(merge, vocab) for merge in items(header, "merges")) if pair]
    model = {
        "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
        "vocab": vocab, "merges": merges,
    }  # fmt: skip
    added = [
        special(at, text, is_special=kinds[at] == CONTROL)
        for at, text in enumerate(tokens)
        if kinds[at] in (CONTROL, USER_DEFINED)
    ]
    save(
        folder, model, added,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        pre_tokenizer={
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
            "invert": False,
        },
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        **settings,
    )  # fmt: skip


def cut(merge: str, vocab: dict[str, int]) -> list[str] | None:
    """The two halves of a merge as a GGUF writes it; a half may hold a space."""
    at = -1
    while (at := merge.find(" ", at + 1)) >= 0:
        halves = [merge[:at], merge[at + 1 :]]
        if all(half in vocab for half in halves):
            return halves
    return None


def trained(
    texts: Sequence[str], pretokenizer: str, folder: Path, names: Sequence[str], **settings: Any
) -> None:
    """A small byte-level BPE with a family's pattern, for those whose vocabulary is not to be had.

    names: its special tokens, which come first.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = json.dumps(PRETOKENIZERS[pretokenizer])
    whole = json.loads(tokenizer.to_str()) | {"pre_tokenizer": json.loads(steps)}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=list(names), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    made = json.loads(tokenizer.to_str())
    save(
        folder, made["model"], made["added_tokens"],
        pre_tokenizer=made["pre_tokenizer"], decoder=GPT2, **settings,
    )  # fmt: skip


def special(at: int, text: str, *, is_special: bool = True) -> dict[str, Any]:
    return {
        "id": at, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": is_special,
    }  # fmt: skip


def items(header: GGUFFile, name: str) -> tuple[Any, ...]:
    value = header.metadata[f"tokenizer.ggml.{name}"]
    assert isinstance(value, Array)
    return value.items


def save(
    folder: Path,
    model: dict[str, Any],
    added: list[dict[str, Any]],
    *,
    pre_tokenizer: dict[str, Any],
    decoder: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
    post_processor: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write tokenizer.json and tokenizer_config.json; settings: the latter's."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor, "decoder": decoder, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(defaults | settings))
