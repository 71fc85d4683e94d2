"""The converter's deferred steps run again, on other values than the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import Slot

if TYPE_CHECKING:
    import numpy as np
    import torch


def sources(slot: Slot) -> tuple[str, ...]:
    """The hub tensors a slot is made of, in the order the converter asks for them."""
    names: dict[str, None] = {}

    def note(name: str, dtype: Any) -> None:
        del dtype
        names[name] = None

    walk(slot, note, run=False)
    return tuple(names)


def replay(slot: Slot, read: Callable[[str], torch.Tensor]) -> np.ndarray[Any, Any]:
    """What the converter would make of other values: `read` gives each tensor, in its shape.

    Unlike `fill` it keeps nothing and may be called again.
    """
    import numpy as np

    return np.asarray(walk(slot, lambda name, dtype: read(name).to(dtype), run=True))


def walk(slot: Slot, read: Callable[[str, Any], Any], *, run: bool) -> Any:
    """Go through the converter's deferred steps, from the tensors it asks for to the slot."""
    import gguf

    done: dict[int, Any] = {}

    def visit(node: Any) -> Any:
        if id(node) not in done:
            done[id(node)] = value(node)
        return done[id(node)]

    def value(node: Any) -> Any:
        arguments = node._args  # noqa: SLF001 - gguf has no public way to run a chain twice
        if len(arguments) == 1 and isinstance(arguments[0], str):
            return read(arguments[0], node._meta.dtype)  # noqa: SLF001
        if node._data is not None:  # noqa: SLF001
            return node._data  # noqa: SLF001
        ready = gguf.LazyBase._recurse_apply(arguments, visit)  # noqa: SLF001
        return node._func(*ready, **node._kwargs) if run else None  # noqa: SLF001

    lazy = slot.fill.__self__.lazy  # type: ignore[union-attr]
    return visit(lazy) if isinstance(lazy, gguf.LazyBase) else lazy
