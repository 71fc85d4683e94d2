"""Where each value of a GGUF tensor comes from, asked of the converter itself.

Its rearrangements (head permutation, stacking, splitting, transposing, shifted norms) are run on
tensors that hold their own positions instead of weights. These take no memory: they are one
row or one column, repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import Slot
from exporter.verify.replay import replay, sources

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.merge.apply import MergedTensors

Shapes = Callable[[str], tuple[int, ...]]
NEAR = 0.01  # how far a position may be from a whole number after float32 arithmetic


@dataclass(frozen=True, slots=True)
class Origin:
    """Of some rows of a slot: each value is factor * source[tensor][row, column] + offset.

    All are (rows, columns). A tensor's rows are those of its last dimension, counted through all
    others; a vector is one row.
    """

    tensor: np.ndarray[Any, Any]
    """Which of the slot's sources."""
    row: np.ndarray[Any, Any]
    column: np.ndarray[Any, Any]
    factor: np.ndarray[Any, Any]
    offset: np.ndarray[Any, Any]

    def take(self, rows: np.ndarray[Any, Any]) -> Origin:
        """Only some of the rows."""
        return Origin(
            self.tensor[rows], self.row[rows], self.column[rows],
            self.factor[rows], self.offset[rows],
        )  # fmt: skip


def trace(slot: Slot, rows: np.ndarray[Any, Any], shapes: Shapes) -> Origin | None:
    """Where rows of a slot come from; None when the converter computes more than it moves."""
    import numpy as np

    names = sources(slot)
    codes = {name: float((number + 1) ** 2) for number, name in enumerate(names)}

    def probe(make: Callable[[str], torch.Tensor]) -> np.ndarray[Any, Any]:
        made = replay(slot, lambda name: make(name).expand(shapes(name)))
        return pick(made, rows).astype(np.float64)

    try:
        offset, one, two, tensor, row, column = (
            probe(make)
            for make in (
                lambda name: filled(0.0, shapes(name)),
                lambda name: filled(1.0, shapes(name)),
                lambda name: filled(2.0, shapes(name)),
                lambda name: filled(codes[name], shapes(name)),
                lambda name: row_numbers(shapes(name)),
                lambda name: column_numbers(shapes(name)),
            )
        )
    except RuntimeError:  # torch will not write into a repeated row
        return None
    factor = one - offset
    divisor = np.where(factor == 0, 1, factor)
    places = [(values - offset) / divisor for values in (tensor, row, column)]
    whole = [np.rint(values) for values in places]
    moved = all(np.abs(a - b).max(initial=0) < NEAR for a, b in zip(places, whole, strict=True))
    number = np.rint(np.sqrt(whole[0].clip(0))) - 1
    known = (factor == 0) | ((number + 1) ** 2 == whole[0])
    if not moved or not known.all() or not np.allclose(two - one, factor, atol=1e-6):
        return None
    number, row, column = (
        values.astype(np.int64).clip(0) for values in (number, whole[1], whole[2])
    )
    return Origin(number.clip(0, len(names) - 1), row, column, factor, offset)


def compute(
    slot: Slot, rows: np.ndarray[Any, Any], read: Callable[[str], torch.Tensor]
) -> np.ndarray[Any, Any]:
    """The rows as the converter makes them of whole tensors: the way for what `trace` cannot."""
    import numpy as np

    return np.asarray(pick(replay(slot, read), rows), np.float64)


def pick(values: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Some rows, without a copy of what is only repeated."""
    import numpy as np

    if values.ndim < 2:  # noqa: PLR2004 - a vector is one row
        return np.asarray(values.reshape(1, -1)[rows])
    return np.asarray(values[np.unravel_index(rows, values.shape[:-1])])


def filled(value: float, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.full([1] * len(shape), value)


def row_numbers(shape: tuple[int, ...]) -> torch.Tensor:
    import math

    import torch

    if len(shape) < 2:  # noqa: PLR2004 - a vector is one row
        return filled(0.0, shape)
    return torch.arange(math.prod(shape[:-1]), dtype=torch.float32).reshape(*shape[:-1], 1)


def column_numbers(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.arange(shape[-1], dtype=torch.float32) if shape else filled(0.0, shape)


def traceable(tensors: MergedTensors) -> MergedTensors:
    """The same tensors, all floats in float32, so that the converter copies none to cast it."""
    from exporter.merge.apply import MergedTensors

    class InFloat32(MergedTensors):
        def dtype(self, name: str) -> torch.dtype:
            import torch

            stored = MergedTensors.stored_dtype(self, name)
            return torch.float32 if stored.is_floating_point else stored

        def read(self, name: str) -> torch.Tensor:
            return MergedTensors.read(self, name).to(self.dtype(name))

    return InFloat32(tensors.plan)
