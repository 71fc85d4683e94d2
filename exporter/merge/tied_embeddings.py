"""Finds the input embedding and the head of a language model, often one tied tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.inputs.checkpoint import Checkpoint
from exporter.inputs.lazy_tensor import Tensor, read_tensor

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared",
              "embeddings")  # fmt: skip
HEADS = ("lm_head", "embed_out", "head", "output")
HEAD_OF = {"embed_in": "embed_out"}
OTHER_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|vit)")
TIE = "tie_word_embeddings"
MATRIX = 2  # dimensions


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The tensors of the embedding and the head, in the checkpoint or by convention."""

    embedding: str
    """The embedding's tensor; empty without one."""
    head: str
    """The head's tensor, stored in the checkpoint or tied to the embedding."""
    head_in_memory: str
    """The head's name in the running model."""
    tied: bool
    is_shared: bool = False
    """Whether encoder and decoder share the embedding too, as in T5."""


def find_embeddings(checkpoint: Checkpoint) -> Embeddings:
    """Find both by their usual names."""
    embedding = find_matrix(checkpoint, EMBEDDINGS)
    found = find_matrix(checkpoint, HEADS)
    leaf = embedding.split(".")[-2] if embedding else ""
    plain = HEAD_OF.get(
        leaf, "head" if checkpoint.config.get("model_type") == "rwkv" else "lm_head"
    )
    prefix = "language_model." if embedding.startswith("language_model.model.") else ""
    head = found or f"{prefix}{plain}.weight"
    tied = bool(embedding) and has_head(checkpoint) and (not found or says_tied(checkpoint))
    return Embeddings(embedding, head, f"{plain}.weight", tied, leaf == "shared")


def find_matrix(checkpoint: Checkpoint, leaves: tuple[str, ...]) -> str:
    """The first matrix of the text model with one of these names."""
    for leaf in leaves:
        for name, tensor in checkpoint.tensors.items():
            is_it = name == f"{leaf}.weight" or name.endswith(f".{leaf}.weight")
            if is_it and len(tensor.shape) == MATRIX and not OTHER_TOWERS.search(name):
                return name
    return ""


def has_head(checkpoint: Checkpoint) -> bool:
    """Whether the model's class predicts tokens."""
    named = checkpoint.config.get("architectures")
    kind = str(named[0]) if isinstance(named, list) and named else ""
    return kind.endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration", "MaskedLM"))


def says_tied(checkpoint: Checkpoint) -> bool:
    """Whether the config ties a head that the checkpoint stores anyway."""
    text = checkpoint.config.get("text_config")
    nested = text.get(TIE) if isinstance(text, dict) else None
    return checkpoint.config.get(TIE, nested) is True


def lacks_head(checkpoint: Checkpoint, embeddings: Embeddings) -> bool:
    """Whether the head is in no file although the config says it is not tied."""
    text = checkpoint.config.get("text_config")
    settings = [part.get(TIE) for part in (checkpoint.config, text) if isinstance(part, dict)]
    return (
        embeddings.tied
        and embeddings.head not in checkpoint.tensors
        and False in settings
        and True not in settings
    )


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors (…) have the same type, shape and values."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool((read_tensor(one) == read_tensor(other)).all())
