"""What a model is for: answers, vectors of texts, or judging texts."""

from __future__ import annotations

from typing import Literal

from exporter.core.errors import UnsupportedError
from exporter.core.gguf import GGUFFile

Purpose = Literal["answers", "vectors", "ranks"]
POOLING_RANK = 4  # llama.h
ENCODERS = ("t5encoder",)
"""Architectures that only read, and have no key that says so."""
ROUTE = {"answers": "/v1/chat/completions", "vectors": "/v1/embeddings", "ranks": "/v1/rerank"}
WHAT = {
    "vectors": "makes vectors of texts, and writes none",
    "ranks": "judges texts, and writes none",
}


def purpose_of(header: GGUFFile) -> Purpose:
    """What a model was made for, by its header."""
    pooling = header.number(f"{header.architecture}.pooling_type")
    if pooling == POOLING_RANK or any(one.name.startswith("cls.") for one in header.tensors):
        return "ranks"
    causal = header.metadata.get(f"{header.architecture}.attention.causal")
    if pooling or causal is False or header.architecture in ENCODERS:
        return "vectors"
    return "answers"


def refuse_without_answers(header: GGUFFile) -> None:
    """Raise UnsupportedError, with what to use, for a model that writes no text."""
    purpose = purpose_of(header)
    if purpose != "answers":
        raise UnsupportedError(
            f"`{header.path}` {WHAT[purpose]}",
            hint=f"serve it, and ask {ROUTE[purpose]}: decant serve {header.path}",
        )
