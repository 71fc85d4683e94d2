"""Headers of models too large to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import GGUFFile, TensorInfo


def llama(path: Path, **changes: Any) -> GGUFFile:
    """An 8 B Llama in Q4_K: 4.5 GB of weights, 131 kB of cache a token."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    } | changes
    kind = GGMLType.by_name("Q4_K")
    tensors = (
        TensorInfo("token_embd.weight", (128256, 4096), kind, 0, path),
        TensorInfo("blk.0.ffn_up.weight", (1_830_000, 4096), kind, 0, path),
    )
    return GGUFFile(path, 0, metadata, tensors)
