"""The adapters' LoRA scales in llama-server's requests."""

from __future__ import annotations

from collections.abc import Sequence


def lora_list(scales: Sequence[float]) -> list[dict[str, float]]:
    """Every adapter's scale, by index."""
    return [{"id": number, "scale": scale} for number, scale in enumerate(scales)]


def lora_vector(scales: Sequence[float]) -> dict[str, object]:
    """The `lora` field of a request to an engine with adapters.

    An adapter that the field leaves out would keep the scale that another request gave it.
    """
    return {"lora": lora_list(scales)}
