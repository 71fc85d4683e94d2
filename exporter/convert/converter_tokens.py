"""The tokenizer of a conversion: the files that the converter reads, the keys it writes.

llama.cpp's converter gets a folder with the files that it expects; the token keys that it writes
are then corrected by the tokenizer as transformers loads it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from exporter.convert.gguf_layout import Conversion
from exporter.convert.kept_tokens import Recording, TokenKeys, TokenStore, copied
from exporter.convert.pretokenizer import METHOD, byte_level_taken, pre_tokenizer_found
from exporter.convert.sentencepiece_pieces import (
    UNIGRAM,
    as_pieces,
    looks_like_pieces,
    merge_scores,
    with_charsmap,
)
from exporter.convert.token_rows import leave_out, rowless, rows_of, shortened
from exporter.convert.tokenizer_keys import say_base_model, settle, settle_unigram
from exporter.convert.upstream_hooks import Hook, upstream_hooks
from exporter.convert.vocabulary_memo import MEMO as VOCABULARY
from exporter.core.errors import CheckpointError
from exporter.core.events import Report
from exporter.inputs.tokenizer import LoadedTokenizer, load_tokenizer, space_before, templates_of
from exporter.inputs.tokenizer_memo import MEMO, TokenizerFiles, tokenizer_files
from exporter.merge.result_files import lay_over

PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, slots=True)
class ConverterTokens:
    """The tokens of a conversion."""

    folder: Path
    """Folder in which the converter reads the tokenizer."""
    loaded: LoadedTokenizer | None
    """transformers' tokenizer; None if it finds none: the converter's keys then stay unchanged."""
    made_of_json: bool = False
    """Whether the only sentencepiece file is the one made of tokenizer.json."""
    hooks: tuple[Hook, ...] = ()
    """Hooks that let the converter's class read this tokenizer."""
    content: str = ""
    """Hash of the tokenizer's files; empty if the result depends on more than them."""
    kept: TokenKeys | None = None
    """The keys that an earlier export wrote; transformers' tokenizer is then not loaded."""
    store: TokenStore | None = None
    """Where the keys will be kept."""
    recording: Recording | None = None

    @property
    def seconds(self) -> float:
        """Seconds for the keys, if they are kept for the next export."""
        is_kept = self.store is not None and self.recording is not None
        return self.recording.seconds if is_kept and self.recording else 0.0

    def noted_in(self, made: Conversion) -> Conversion:
        """The conversion with the facts about its tokenizer."""
        facts = replace(made, loaded=self.loaded, tokenizer_hash=self.content)
        return replace(facts, tokens_s=self.seconds)

    def settle(self, model: Any, report: Report) -> None:
        """Correct the token keys that the converter's `model` wrote to match transformers."""
        held = getattr(model, "impl", model).gguf_writer.kv_data[0]
        if self.kept is not None:
            self.kept.settle(held, report)
        elif self.loaded is not None:
            before, recording = copied(held), self.recording or Recording(report)
            with recording.timed():
                settle(model, self.loaded, self.folder, recording.report)
                if self.made_of_json:
                    settle_unigram(model, self.loaded)
            if self.store is not None and (keys := recording.corrected(before, held)) is not None:
                self.store.keep(keys)
        else:
            return
        say_base_model(model, report)


@contextmanager
def converter_tokens(
    folder: Path,
    hparams: Mapping[str, Any],
    model_class: Any,
    trust_remote_code: bool,
    build: str,
    report: Report,
) -> Iterator[ConverterTokens]:
    """The tokenizer in `folder` in the form that the converter's `model_class` reads.

    build: of llama.cpp. Raises CheckpointError if the embedding lacks rows for necessary tokens,
    and, while the converter runs with the hooks, UnsupportedError for a pre-tokenizer unknown to
    llama.cpp.
    """
    if not hasattr(model_class, METHOD):
        yield ConverterTokens(folder, None)  # a projector has no tokens
        return
    files = files_of(folder)
    store = None if files.has_code else TokenStore(files.content, model_class, hparams, build)
    recording = Recording(report)
    with tempfile.TemporaryDirectory(prefix="decant-") as temporary:
        if store is not None and (kept := store.read()) is not None:
            hook = Hook(model_class, {"set_vocab": lambda model: kept.write(held_by(model))})
            laid = laid_over(folder, kept.files, Path(temporary))
            yield ConverterTokens(laid, None, hooks=(hook,), content=files.content, kept=kept)
            return
        content = "" if files.has_code else files.content
        with recording.timed():
            loaded = load_tokenizer(folder, trust_remote_code=trust_remote_code, files=files)
            rows = rows_of(hparams)
            changed = changed_files(loaded, folder, rows, recording.report) if loaded else {}
        if changed:
            files = files.laid_over(laid_over(folder, changed, Path(temporary)), changed)
        recording.files = changed
        taken = byte_level_taken(model_class, loaded)
        hooks = (
            loaded_once(files),
            pre_tokenizer_found(model_class, loaded),
            written_once(model_class, taken, files.content, recording),
        )
        yield ConverterTokens(
            files.folder,
            loaded,
            made_of_json=bool(changed) and not has_pieces(folder),
            hooks=hooks,
            content=content,
            store=store,
            recording=recording,
        )


def laid_over(folder: Path, changed: Mapping[str, bytes], temporary: Path) -> Path:
    """A folder with the files of `folder` and the `changed` ones; `folder` if there are none."""
    if not changed:
        return folder
    laid = temporary / folder.name  # the converter derives names from it
    laid.mkdir()
    lay_over(laid, folder, dict(changed))
    return laid


def held_by(model: Any) -> dict[str, Any]:
    """The keys that the converter's `model` has written."""
    held: dict[str, Any] = model.gguf_writer.kv_data[0]
    return held


def files_of(folder: Path) -> TokenizerFiles:
    """A folder's tokenizer files, hashed once. Raises CheckpointError for an unreadable one."""
    try:
        return tokenizer_files(folder)
    except OSError as error:
        raise CheckpointError(
            f"a file of the tokenizer in `{folder}` cannot be read: {error}",
            hint="check its permissions, or copy or download it again",
        ) from error


def written_once(model_class: Any, hook: Hook, content: str, recording: Recording) -> Hook:
    """Hook that writes the token keys as `hook` does, or those written before for these files.

    content: the hash of the files.
    """
    set_vocab = hook.changes.get("set_vocab", model_class.set_vocab)

    def write(model: Any) -> None:
        before = set(held_by(model))
        with recording.timed():
            is_known = VOCABULARY.write(model, set_vocab, content)
        if is_known:
            recording.wrote(before, held_by(model))

    return Hook(model_class, {"set_vocab": write})


def loaded_once(files: TokenizerFiles) -> Hook:
    """Hook that gives the converter the tokenizer that is already loaded from these files."""
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained

    def from_pretrained(folder: Path, *further: Any, **options: Any) -> Any:
        if further or set(options) - {"trust_remote_code"}:
            return original(folder, *further, **options)
        with upstream_hooks(Hook(AutoTokenizer, {"from_pretrained": original})):
            is_theirs = Path(folder) == files.folder
            return MEMO.load(files if is_theirs else Path(folder), **options)

    return Hook(AutoTokenizer, {"from_pretrained": from_pretrained})


def remember_pieces(model: Any) -> None:
    """Cache sentencepiece's pieces in the converter's `model`: Gemma's class reads them twice."""
    read = getattr(model, "_create_vocab_sentencepiece", None)
    if read is not None:
        found = cache(read)
        model._create_vocab_sentencepiece = lambda: tuple(map(list, found()))  # noqa: SLF001


def changed_files(
    loaded: LoadedTokenizer, folder: Path, rows: int | None, report: Report
) -> dict[str, bytes]:
    """The files that complement or replace those of `folder` for the converter."""
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
    """Whether sentencepiece's scores of the pieces follow the merges strictly."""
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
    """Whether the tokenizer is not byte-level; a quick check."""
    kinds = {step.get("type") for step in loaded.steps("pre_tokenizer")}
    return not kinds & {"ByteLevel", "BertPreTokenizer"}
