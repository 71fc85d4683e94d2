"""Speculative decoding: the next tokens are guessed, and the model checks all guesses in one batch.

Guesses that the model would not have chosen are discarded, so the answers are the model's own; only
sums may differ in their last bits, as with any other batch size. Guesses come from the text so
far (n-grams), from a small model with the same vocabulary (a draft model), or from layers that
the model has for it (multi-token prediction, MTP).

Upstream's other n-gram kinds are not used: they learn from the texts of all slots, so that one
client's speed depends on another client's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from exporter.core.errors import InputError, ModelError, UnsupportedError
from exporter.core.events import Report, silent
from exporter.core.gguf import MAX_ITEMS, Array, GGUFFile, read_gguf
from exporter.core.near_names import did_you_mean
from exporter.llamacpp.header_tokens import stamp
from exporter.model_store import find_model
from runtime.engine.memory_limit import has_uncut_state
from runtime.engine.memory_need import LAYERS_KEPT
from runtime.engine.opened_model import Model

Kind = Literal["off", "auto", "ngram", "mtp", "draft"]
KINDS: tuple[Kind, ...] = ("off", "auto", "ngram", "mtp")
MATCHED = 12  # tokens at the end of the text that must have occurred before
GUESSED = 16  # tokens that are guessed at once
DRAFTED = 8  # the same for a draft model, whose guesses take time
SIZE_DIFFERENCE = 128  # tokens; llama.cpp's SPEC_VOCAB_MAX_SIZE_DIFFERENCE
SPECIAL = 5  # the first tokens, which llama.cpp does not compare
NGRAM = (
    "--spec-type", "ngram-simple",
    "--spec-ngram-simple-size-n", str(MATCHED),
    "--spec-ngram-simple-size-m", str(GUESSED),
)  # fmt: skip
MTP = ("--spec-type", "draft-mtp")
DRAFT = ("--spec-type", "draft-simple", "--spec-draft-model")


@dataclass(frozen=True, slots=True)
class Speculation:
    """The kind of guesses, and their draft model."""

    kind: Kind = "off"
    draft: GGUFFile | None = None
    """The draft model's header."""

    def fitted(self, model: Model) -> Speculation:
        """The kind for a model: `auto` becomes a kind that can make it faster, or `off`.

        Raises UnsupportedError for a kind that the model cannot use.
        """
        if self.kind in ("off", "auto"):
            return Speculation(auto_kind(model)) if self.kind == "auto" else self
        if why := obstacle(model):
            raise UnsupportedError(
                f"`{model.header.path}` {why}, so --spec {self.kind} is not possible",
                hint="leave --spec out",
            )
        if self.kind == "mtp" and not has_mtp(model.header):
            raise UnsupportedError(
                f"`{model.header.path}` has no layers that predict several tokens (MTP)",
                hint="--spec ngram, or --spec with a small model of the same family",
            )
        if self.draft is not None:
            refuse_other_vocabulary(model.header, self.draft)
        return self

    def for_another(self) -> Speculation:
        """The same for another model, which the draft model may not fit."""
        return AUTO if self.kind in ("mtp", "draft") else self

    def flags(self) -> tuple[str, ...]:
        """The flags of llama-server for a fitted kind."""
        if self.draft is not None:
            path = str(self.draft.path.absolute())
            return (*DRAFT, path, "--spec-draft-n-max", str(DRAFTED))
        return {"ngram": NGRAM, "mtp": MTP}.get(self.kind, ())


OFF = Speculation()
AUTO = Speculation("auto")


def speculation_of(text: str, store: Path, *, report: Report = silent) -> Speculation:
    """The value of --spec: a kind, or a draft model, as `find_model` finds it.

    Raises InputError for anything else, and the errors of reading the model.
    """
    for kind in KINDS:
        if text == kind:
            return Speculation(kind)
    try:
        path = find_model(text, store, report=report)
    except ModelError as error:
        raise InputError(
            f"--spec {text!r} is no way to guess, and no model: {error.message}",
            hint=did_you_mean(
                text, KINDS, f"--spec {', '.join(KINDS)}, or a small model of the same family"
            ),
        ) from error
    header = read_gguf(path, keep_items=LAYERS_KEPT)
    if header.is_adapter:
        raise InputError(
            f"`{header.path}` is an adapter, and --spec needs a whole model",
            hint="name a small model of the same family",
        )
    return Speculation("draft", header)


def fitted_or_off(speculation: Speculation, model: Model) -> Speculation:
    """The kind for one of several models: `off` for a model that cannot use it."""
    try:
        return speculation.fitted(model)
    except UnsupportedError:
        return OFF


def auto_kind(model: Model) -> Kind:
    """The kind that can make a model faster."""
    if obstacle(model) or has_uncut_state(model.header):
        return "off"
    return "mtp" if has_mtp(model.header) else "ngram"


def obstacle(model: Model) -> str:
    """Why guesses are not possible with a model; empty if they are."""
    if model.is_encoder_decoder:
        return "is an encoder-decoder"
    if model.projector is not None:
        return "takes images"
    return ""


def has_mtp(model: GGUFFile) -> bool:
    """Whether a model has layers for multi-token prediction."""
    return bool(model.number(f"{model.architecture}.nextn_predict_layers"))


def refuse_other_vocabulary(model: GGUFFile, draft: GGUFFile) -> None:
    """Raise UnsupportedError for a draft model whose tokens are not the model's.

    The comparison is llama.cpp's, which would run without guesses and say nothing.
    """
    if why := difference_between(model.path, draft.path, (stamp(model.path), stamp(draft.path))):
        raise UnsupportedError(
            f"`{draft.path}` cannot guess for `{model.path}`: {why}",
            hint="take a small model of the same family, or --spec ngram",
        )


@lru_cache(maxsize=64)
def difference_between(model: Path, draft: Path, written: tuple[tuple[int, int], ...]) -> str:
    """`vocabulary_difference` of two files; each start of an engine asks for it."""
    del written
    whole = (read_gguf(path, keep_items=MAX_ITEMS) for path in (model, draft))
    return vocabulary_difference(*whole)


def vocabulary_difference(model: GGUFFile, draft: GGUFFile) -> str:
    """How two vocabularies differ; empty if llama.cpp takes them for one."""
    for key in compared_keys(model):
        mine, other = (one.metadata.get(f"tokenizer.ggml.{key}") for one in (model, draft))
        if mine != other and other is not None:
            return f"its `tokenizer.ggml.{key}` is {other}, not {mine}"
    ours, theirs = tokens_of(model), tokens_of(draft)
    if abs(len(ours) - len(theirs)) > SIZE_DIFFERENCE:
        return f"it has {len(theirs)} tokens, not {len(ours)}"
    for number in range(SPECIAL, min(len(ours), len(theirs))):
        if ours[number] != theirs[number]:
            return f"its token {number} is {theirs[number]!r}, not {ours[number]!r}"
    return ""


def compared_keys(model: GGUFFile) -> list[str]:
    """The settings of a tokenizer in which a draft model must agree, where both say them."""
    keys = ["model"]
    for name in ("bos", "eos"):
        if isinstance(added := model.metadata.get(f"tokenizer.ggml.add_{name}_token"), bool):
            keys += [f"add_{name}_token", f"{name}_token_id"] if added else [f"add_{name}_token"]
    return keys


def tokens_of(model: GGUFFile) -> tuple[object, ...]:
    found = model.metadata.get("tokenizer.ggml.tokens")
    return found.items if isinstance(found, Array) else ()
