"""Sliding windows: which layers have one, and how the GGUF says so.

llama.cpp assumes a rhythm (every fourth layer sees all) for the architectures below unless the file
lists the layers; its converter lists them for some architectures only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.convert.refusals import OTHER_FORMAT
from exporter.core.errors import UnsupportedError

WINDOWED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The rhythm of one architecture in llama.cpp's src/models/*.cpp (load_swa_pattern)."""

    period: int
    """One of this many layers sees all tokens."""
    first: bool = False
    """Whether this layer is the first of the period, not the last."""
    optional: bool = False
    """Whether a file may have no layer with a window."""

    def layers(self, count: int) -> list[bool]:
        """For each layer, whether it has a window."""
        seeing = 0 if self.first else self.period - 1
        return [number % self.period != seeing for number in range(count)]


RHYTHMS: Mapping[str, Rhythm] = {
    "afmoe": Rhythm(4, optional=True),
    "cohere2": Rhythm(4),
    "cohere2moe": Rhythm(4, first=True),
    "exaone-moe": Rhythm(4),
    "exaone4": Rhythm(4),
    "gemma-embedding": Rhythm(6),
    "gemma2": Rhythm(2),
    "gemma3": Rhythm(6, optional=True),
    "gemma3n": Rhythm(5),
    "gpt-oss": Rhythm(2),
    "laguna": Rhythm(4, first=True, optional=True),
    "llama4": Rhythm(4, optional=True),
    "mellum": Rhythm(4, optional=True),
    "modern-bert": Rhythm(3, first=True, optional=True),
    "muse-glimmer": Rhythm(4),
    "olmo2": Rhythm(4, optional=True),
}


def settle_windows(writer: Any, hparams: Mapping[str, Any]) -> None:
    """List the layers with a window if they differ from llama.cpp's rhythm, or write that none has.

    writer: the GGUFWriter with all of the converter's settings; hparams: the text model's. Raises
    UnsupportedError for a model without windows if llama.cpp needs some.
    """
    types, architecture = hparams.get("layer_types"), str(writer.arch)
    rhythm = RHYTHMS.get(architecture)
    if rhythm is None or not isinstance(types, list):
        return
    window = f"{architecture}.attention.sliding_window"
    listed = f"{window}_pattern"
    written = writer.kv_data[0]
    layers = [kind in WINDOWED for kind in types]
    if any(layers):
        if listed not in written and layers != rhythm.layers(len(layers)):
            writer.add_sliding_window_pattern(layers)
    elif architecture == "llama4":
        if window not in written:
            writer.add_sliding_window(0)  # llama4.cpp: 0 means no window
    elif rhythm.optional:
        for key in (window, listed):
            if key in written:
                writer.remove_key(key)
    elif window in written:
        raise UnsupportedError(
            f"no layer of this model has a sliding window, and llama.cpp's {architecture} needs"
            " layers with one",
            hint=OTHER_FORMAT,
        )
