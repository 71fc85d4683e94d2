"""Models that score texts or pairs: the heads that llama.cpp computes as transformers does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.embedder import SCORE, check_modules, class_hooks, refused, write_keys
from exporter.convert.upstream_hooks import Hook
from exporter.core.errors import UnsupportedError
from exporter.core.events import Report, Warn, silent
from exporter.inputs.embedder_files import Module

if TYPE_CHECKING:
    from exporter.merge.apply import MergedTensors
    from exporter.merge.operations import MergePlan

HEADED = "ForSequenceClassification"
BERT, DISTILBERT = f"Bert{HEADED}", f"DistilBert{HEADED}"
TYPES = "embeddings.token_type_embeddings.weight"
WORDS = "embeddings.word_embeddings.weight"
POOLER = "pooler.dense."
INNER = "bert."
"""A classifier's prefix for the encoder in it; a bare encoder has none."""
SOME_WORDS = 2000
"""Rows of the vocabulary over which the mean length of a word's vector is taken."""
QWEN3_RERANKER = re.compile(r"qwen3-(vl-)?reranker", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Purpose:
    """The purpose of a model besides text: vectors of texts, or scores of pairs."""

    folder: Path
    """Folder with the model's config and the files of sentence-transformers."""
    architecture: str
    modules: tuple[Module, ...] = ()
    ranks: bool = False
    """Whether it scores a pair by two words' logits."""

    def hooks(self, model_class: Any) -> tuple[Hook, ...]:
        """Hooks that let llama.cpp's class convert the model for that purpose."""
        return class_hooks(model_class, self.modules, ranks=self.ranks)

    def begin(self, model: Any) -> None:
        """Configure the head of the converter's model before its tensors are laid out."""
        settle_head(model, self.architecture, self.modules)

    def finish(self, model: Any) -> None:
        """Add the metadata that the converter leaves out."""
        write_keys(model.gguf_writer, self.folder, self.modules)


def find_purpose(
    folder: Path, architecture: str, tensors: MergedTensors, part: str, *, report: Report = silent
) -> Purpose:
    """The purpose of the model in `folder`; a projector serves pictures only.

    Raises UnsupportedError if llama.cpp does not compute the steps after the transformer.
    """
    if part == "projector":
        return Purpose(folder, architecture)
    modules = check_modules(folder, report=report)
    check_head(architecture, tensors, report=report)
    ranks = ranks_by_logits(tensors.plan, folder, modules)
    return Purpose(folder, architecture, modules, ranks)


def check_head(architecture: str, tensors: MergedTensors, *, report: Report = silent) -> None:
    """Warn if llama.cpp computes a classifier's head differently from transformers.

    Raises UnsupportedError if that changes a reranker's order.
    """
    if architecture == BERT and (gap := type_gap(tensors)):
        report(
            Warn(
                "the two texts of a pair differ by token types, which decant's llama.cpp knows and"
                " others do not: there, scores of pairs are not this model's (the types differ by"
                f" {gap:.2f} of a word's length)"
            )
        )
    if architecture != DISTILBERT:
        return
    why = "llama.cpp computes tanh in a head where DistilBERT has ReLU"
    if label_count(tensors.plan) == 1:
        raise UnsupportedError(
            f"a GGUF of this {architecture} would rank documents in another order: {why}",
            hint="`--to safetensors` keeps it for sentence-transformers; rerankers of BERT,"
            " RoBERTa, XLM-RoBERTa, ModernBERT and Qwen3 can become a GGUF",
        )
    report(Warn(f"the GGUF's scores are not transformers': {why}"))


def label_count(plan: MergePlan) -> int:
    """Number of scores of the head; transformers' default is two."""
    config = plan.checkpoint.config | plan.config
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2


def type_gap(tensors: MergedTensors) -> float:
    """Distance between a BERT's two token types, relative to the length of a word's vector."""
    names = {name.removeprefix(INNER): name for name in tensors.names}
    if TYPES not in names or WORDS not in names:
        return 0.0
    types = tensors.read(names[TYPES]).float()  # (types, width)
    if len(types) == 1:
        return 0.0
    gap = float((types[1] - types[0]).norm())
    if not gap:
        return 0.0
    words = tensors.read(names[WORDS])[:SOME_WORDS].float()  # (words, width)
    return gap / max(float(words.norm(dim=1).mean()), 1e-12)


def converter_name(architecture: str, name: str) -> str:
    """The name under which llama.cpp's converter gets a tensor.

    The converter drops the pooler of every BERT, although a classifier's head uses it. It keeps the
    pooler under the name of the first half of RoBERTa's head, which is computed the same way.
    """
    plain = name.removeprefix(INNER)
    if architecture == BERT and plain.startswith(POOLER):
        return plain.replace(POOLER, "classifier.dense.")
    return name


def ranks_by_logits(plan: MergePlan, folder: Path, modules: tuple[Module, ...]) -> bool:
    """Whether a causal model scores pairs by two words' logits, as Qwen3-Reranker does.

    sentence-transformers declares it by a module; otherwise only the name shows it.
    """
    if any(module.kind == SCORE for module in modules):
        return True
    card = folder / "README.md"
    head = card.read_text(encoding="utf-8", errors="replace").lower() if card.is_file() else ""
    named = [plan.checkpoint.name, str(plan.checkpoint.config.get("_name_or_path", ""))]
    named += [weighted.adapter.base or "" for weighted in plan.adapters]
    return any(QWEN3_RERANKER.search(name) for name in named) or "# qwen3-reranker" in head


def settle_head(model: Any, architecture: str, modules: tuple[Module, ...]) -> None:
    """Set the labels and the two words of a score on the converter's `model`.

    The converter ignores two labels without names, as transformers' placeholders; a classifier has
    them. The words of a score by logits come from sentence-transformers' module. Raises
    UnsupportedError for a score that is not of two words.
    """
    labels = model.hparams.get("id2label")
    if architecture.endswith(HEADED) and hasattr(model, "cls_out_labels") and labels:
        model.cls_out_labels = labels
    for module in modules:
        if module.kind == SCORE:
            words = [module.settings.get(f"{word}_token_id") for word in ("true", "false")]
            if not all(type(word) is int for word in words):
                raise refused("its score from one word's logit", "llama.cpp compares two words")
            model.token_true_id, model.token_false_id = words
