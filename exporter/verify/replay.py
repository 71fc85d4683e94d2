"""The converter's deferred steps run again, on other values than the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.convert import lazy_graph
from exporter.convert.gguf_layout import Slot

if TYPE_CHECKING:
    import numpy as np


def sources(slot: Slot) -> tuple[str, ...]:
    """The checkpoint's tensors a slot is made of, in the order the converter asks for them."""
    return lazy_graph.sources(slot.values)


def replay(slot: Slot, read: lazy_graph.Read) -> np.ndarray[Any, Any]:
    """What the converter would make of other values: `read` gives each tensor, in its shape."""
    import numpy as np

    return np.asarray(lazy_graph.evaluate(slot.values, read))
