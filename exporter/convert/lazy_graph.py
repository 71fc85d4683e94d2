"""The converter's unread tensors, looked into: what they would be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def stacked(lazy: Any) -> list[Any]:
    """The experts that the converter would stack to get this tensor, if that is its last step."""
    import gguf
    import torch

    if not isinstance(lazy, gguf.LazyBase) or not lazy._args:  # noqa: SLF001 - it has no public face
        return []
    below: Any = lazy._args[0]  # noqa: SLF001
    if getattr(below, "_func", None) is not torch.stack:
        return []
    args, named = below._args, below._kwargs  # noqa: SLF001
    alone = len(args) == 1 and isinstance(args[0], list | tuple)
    return list(args[0]) if alone and named.get("dim", 0) == 0 else []


def to_float32(lazy: Any) -> np.ndarray[Any, Any]:
    """The values of one of the converter's tensors, whichever library it is of."""
    import gguf
    import numpy as np
    import torch

    values = gguf.LazyBase.to_eager(lazy) if isinstance(lazy, gguf.LazyBase) else lazy
    if isinstance(values, torch.Tensor):
        values = values.float().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)
