"""The adapters' LoRA scales in llama-server's requests."""

from __future__ import annotations

from collections.abc import Sequence

EXPLICIT_MAX = 32
"""A longer list names no adapters with scale 0: llama-server gives that scale to adapters that the
list leaves out, unless it is empty. It would read a thousand entries more slowly than it computes a
short answer."""


def lora_list(scales: Sequence[float]) -> list[dict[str, float]]:
    """The adapters' scales, by index."""
    is_whole = len(scales) <= EXPLICIT_MAX
    found = [{"id": n, "scale": scale} for n, scale in enumerate(scales) if scale or is_whole]
    return found or ([] if is_whole else [{"id": 0, "scale": 0.0}])


def lora_vector(scales: Sequence[float]) -> dict[str, object]:
    """The `lora` field of a request to an engine with adapters.

    Without the field, an adapter would keep the scale that another request gave it.
    """
    return {"lora": lora_list(scales)}
