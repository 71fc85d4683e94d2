"""Runs the converter's deferred steps on values other than the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.convert import lazy_graph
from exporter.convert.gguf_layout import Slot

if TYPE_CHECKING:
    import numpy as np


def sources(slot: Slot) -> tuple[str, ...]:
    """The checkpoint's tensors of a slot, in the order of the converter's requests."""
    return lazy_graph.sources(slot.values)


def replay(slot: Slot, read: lazy_graph.Read) -> np.ndarray[Any, Any]:
    """The slot's values, of its shape (rows, columns), computed from other values.

    read: returns each source tensor, in its shape.
    """
    import numpy as np

    return np.asarray(lazy_graph.evaluate(slot.values, read))
