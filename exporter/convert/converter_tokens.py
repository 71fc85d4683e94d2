"""The tokenizer's side of a conversion: what the converter reads, and what it is to write.

llama.cpp's converter is given a folder in which it finds the files that it looks for; what it
then writes of tokens is settled by the tokenizer as transformers loads it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from exporter.convert.pretokenizer import METHOD, byte_level_taken, pre_tokenizer_found
from exporter.convert.sentencepiece_pieces import (
    UNIGRAM,
    as_pieces,
    looks_like_pieces,
    merge_scores,
    with_charsmap,
)
from exporter.convert.token_rows import leave_out, rowless, rows_of, shortened
from exporter.convert.tokenizer_keys import settle, settle_unigram
from exporter.convert.upstream_hooks import Hook
from exporter.core.events import Report
from exporter.inputs.tokenizer import LoadedTokenizer, load_tokenizer, space_before, templates_of
from exporter.merge.result_files import lay_over

PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, slots=True)
class ConverterTokens:
    """What a conversion needs to know of tokens."""

    folder: Path
    """Where the converter looks for them."""
    loaded: LoadedTokenizer | None
    """None where transformers finds no tokenizer: the converter is left to itself."""
    made_of_json: bool = False
    """Whether there is no file of sentencepiece's but what was made of tokenizer.json."""
    hooks: tuple[Hook, ...] = ()
    """What has the converter's class read this tokenizer."""

    def settle(self, model: Any, report: Report) -> None:
        """Make what the converter's `model` wrote of tokens equal transformers' tokenizer."""
        if self.loaded is not None:
            settle(model, self.loaded, self.folder, report)
            if self.made_of_json:
                settle_unigram(model, self.loaded)


@contextmanager
def converter_tokens(
    folder: Path,
    hparams: Mapping[str, Any],
    model_class: Any,
    trust_remote_code: bool,
    report: Report,
) -> Iterator[ConverterTokens]:
    """The tokenizer in `folder` in the form in which the converter's `model_class` reads it.

    Raises CheckpointError when the embedding lacks rows for tokens that are needed, and, while
    the converter runs with the hooks, UnsupportedError for a pre-tokenizer that llama.cpp has not.
    """
    if not hasattr(model_class, METHOD):
        yield ConverterTokens(folder, None)  # a projector, which has no tokens
        return
    loaded = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    hooks = (pre_tokenizer_found(model_class, loaded), byte_level_taken(model_class, loaded))
    with tempfile.TemporaryDirectory(prefix="decant-") as temporary:
        files = files_for(loaded, folder, rows_of(hparams), report) if loaded else {}
        if not files:
            yield ConverterTokens(folder, loaded, hooks=hooks)
            return
        laid = Path(temporary) / folder.name  # a name is what the converter makes names of
        laid.mkdir()
        lay_over(laid, folder, dict(files))
        yield ConverterTokens(laid, loaded, not has_pieces(folder), hooks)


def remember_pieces(model: Any) -> None:
    """Have the converter's `model` read sentencepiece's pieces once: Gemma's does it twice."""
    read = getattr(model, "_create_vocab_sentencepiece", None)
    if read is not None:
        found = cache(read)
        model._create_vocab_sentencepiece = lambda: tuple(map(list, found()))  # noqa: SLF001


def files_for(
    loaded: LoadedTokenizer, folder: Path, rows: int | None, report: Report
) -> dict[str, bytes]:
    """The files that the converter is to find beside or in place of those of `folder`."""
    templates = templates_of(loaded)
    files: dict[str, bytes] = {}
    if rows is not None:
        files = leave_out(loaded, folder, rows, "\n".join(templates.values()), report)
    if may_be_pieces(loaded) and not (has_pieces(folder) and in_order(loaded, folder)):
        written = loaded.written
        if rows is not None and rowless(loaded, rows):
            written = shortened(written, rows)
        if looks_like_pieces(written):
            prefix, _ = space_before(loaded, in_chats=bool(templates))
            unknown = loaded.special("unk")
            files["tokenizer.model"] = as_pieces(written, unknown=unknown, prefix=prefix)
            if written["model"]["type"] == UNIGRAM:
                files["tokenizer.json"] = json.dumps(with_charsmap(written)).encode()
    return files


def has_pieces(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PIECES)


def in_order(loaded: LoadedTokenizer, folder: Path) -> bool:
    """Whether sentencepiece's scores of the pieces follow the merges, with no two alike."""
    path = folder / PIECES[0]
    if not path.is_file() or loaded.kind != "BPE":
        return True
    from sentencepiece import SentencePieceProcessor

    held = SentencePieceProcessor(str(path))
    order = sorted(merge_scores(loaded.written["model"]), key=lambda item: -item[2])
    scores = [
        held.GetScore(number)
        for text, number, _ in order
        if len(text) > 1 and number < held.vocab_size() and is_plain(held, number)
    ]
    return all(one > other for one, other in pairwise(scores))


def is_plain(held: Any, number: int) -> bool:
    """Whether a piece is text."""
    return not (held.IsControl(number) or held.IsByte(number) or held.IsUnknown(number))


def may_be_pieces(loaded: LoadedTokenizer) -> bool:
    """Whether the tokenizer does not work on bytes written as letters; quick to tell."""
    kinds = {step.get("type") for step in loaded.steps("pre_tokenizer")}
    return not kinds & {"ByteLevel", "BertPreTokenizer"}
