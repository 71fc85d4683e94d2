"""The purpose of a model: to answer, to embed texts or to rank them."""

from __future__ import annotations

from typing import Literal

from exporter.core.errors import UnsupportedError
from exporter.core.gguf import GGUFFile

Purpose = Literal["answers", "vectors", "ranks"]
POOLING_RANK = 4  # llama.h
ENCODERS = ("t5encoder",)
"""Encoder-only architectures without a key that says so."""
ROUTE = {"answers": "/v1/chat/completions", "vectors": "/v1/embeddings", "ranks": "/v1/rerank"}
WHAT = {
    "vectors": "computes vectors of texts, and generates no text",
    "ranks": "ranks texts, and generates none",
}


def purpose_of(header: GGUFFile) -> Purpose:
    """The purpose of a model, by its header."""
    pooling = header.number(f"{header.architecture}.pooling_type")
    if pooling == POOLING_RANK or any(one.name.startswith("cls.") for one in header.tensors):
        return "ranks"
    causal = header.metadata.get(f"{header.architecture}.attention.causal")
    if pooling or causal is False or header.architecture in ENCODERS:
        return "vectors"
    return "answers"


def refuse_without_answers(header: GGUFFile) -> None:
    """Raise UnsupportedError, with the route to use, for a model that generates no text."""
    purpose = purpose_of(header)
    if purpose != "answers":
        raise UnsupportedError(
            f"`{header.path}` {WHAT[purpose]}",
            hint=f"serve it, and send requests to {ROUTE[purpose]}: decant serve {header.path}",
        )
