"""Finds the origin of each value of a GGUF tensor by running the converter on probes.

Its rearrangements (head permutation, stacking, splitting, transposing, shifted norms) run on
tensors that hold their positions instead of weights. These take no memory: they are one row or one
column, expanded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.convert.gguf_layout import Slot
from exporter.convert.lazy_graph import before_casts, leaf_name
from exporter.verify.replay import replay, sources

if TYPE_CHECKING:
    import numpy as np
    import torch

    from exporter.merge.apply import MergedTensors

Shapes = Callable[[str], tuple[int, ...]]
NEAR = 0.01  # tolerance of a position after float32 arithmetic


@dataclass(frozen=True, slots=True)
class ValueOrigin:
    """The origin of some rows of a slot: factor * source[tensor][row, column] + offset.

    All fields are (rows, columns). Row numbers count through all leading dimensions of a tensor; a
    vector is one row.
    """

    tensor: np.ndarray[Any, Any]
    """Index of the slot's source."""
    row: np.ndarray[Any, Any]
    column: np.ndarray[Any, Any]
    factor: np.ndarray[Any, Any]
    offset: np.ndarray[Any, Any]
    is_whole_row: bool = False
    """Whether each row is one row of the only source, with all its columns in order, unchanged."""

    def take(self, rows: np.ndarray[Any, Any]) -> ValueOrigin:
        """The origins of some of the rows."""
        if self.is_whole_row:
            return whole_rows(self.row[rows, 0], self.row.shape[1])
        return ValueOrigin(
            self.tensor[rows], self.row[rows], self.column[rows],
            self.factor[rows], self.offset[rows],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probes:
    """Some rows of a slot computed from known tensors, all (rows, columns) in float64."""

    zeros: np.ndarray[Any, Any]
    """From tensors of zeros: the offset of each value."""
    ones: np.ndarray[Any, Any]
    twos: np.ndarray[Any, Any]
    codes: np.ndarray[Any, Any]
    """From tensors that hold the code of their name."""
    rows: np.ndarray[Any, Any]
    """From tensors that hold their row numbers."""
    columns: np.ndarray[Any, Any]
    """From tensors that hold their column numbers."""

    @property
    def factor(self) -> np.ndarray[Any, Any]:
        factor: np.ndarray[Any, Any] = self.ones - self.zeros
        return factor

    def is_affine(self) -> bool:
        """Whether twice the input changes each value twice as much."""
        import numpy as np

        return bool(np.allclose(self.twos - self.ones, self.factor, atol=1e-6))

    def undone(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """The inputs of (rows, columns) values as whole numbers; None if one is not whole."""
        import numpy as np

        inputs = (values - self.zeros) / np.where(self.factor == 0, 1, self.factor)
        whole: np.ndarray[Any, Any] = np.rint(inputs)
        return whole if np.abs(inputs - whole).max(initial=0) < NEAR else None


def trace(slot: Slot, rows: np.ndarray[Any, Any], shapes: Shapes) -> ValueOrigin | None:
    """The origin of rows (n,) of a slot; None if the converter does more than move and scale."""
    import numpy as np

    names = sources(slot)
    if leaf_name(before_casts(slot.values)) is not None and shapes(names[0]) == slot.shape:
        return whole_rows(rows, slot.shape[-1] if slot.shape else 1)
    try:
        probes = probe(slot, rows, shapes)
    except RuntimeError:  # torch does not write into an expanded row
        return None
    code, row, column = map(probes.undone, (probes.codes, probes.rows, probes.columns))
    if code is None or row is None or column is None or not probes.is_affine():
        return None
    number = np.rint(np.sqrt(code.clip(0))) - 1
    if not ((probes.factor == 0) | (code_of(number) == code)).all():
        return None
    last = len(names) - 1
    number, row, column = (values.astype(np.int64).clip(0) for values in (number, row, column))
    return ValueOrigin(number.clip(0, last), row, column, probes.factor, probes.zeros)


def whole_rows(rows: np.ndarray[Any, Any], columns: int) -> ValueOrigin:
    """The origin of rows (n,) of a slot without any step: themselves."""
    import numpy as np

    shape = len(rows), columns
    zeros, row = np.broadcast_to(0, shape), np.broadcast_to(rows[:, None], shape)
    column = np.broadcast_to(np.arange(columns), shape)
    one, none = np.broadcast_to(1.0, shape), np.broadcast_to(0.0, shape)
    return ValueOrigin(zeros, row, column, one, none, is_whole_row=True)


def code_of(number: Any) -> Any:
    """The code of a source: a square, so that sums and means of codes are seldom codes."""
    return (number + 1) ** 2


def probe(slot: Slot, rows: np.ndarray[Any, Any], shapes: Shapes) -> Probes:
    """Run the converter's steps for rows (n,) of a slot on each kind of known tensor."""
    import numpy as np

    codes = {name: float(code_of(number)) for number, name in enumerate(sources(slot))}

    def run(make: Callable[[str], torch.Tensor]) -> np.ndarray[Any, Any]:
        made = replay(slot, lambda name: make(name).expand(shapes(name)))
        return pick(made, rows).astype(np.float64)

    return Probes(
        zeros=run(lambda name: filled(0.0, shapes(name))),
        ones=run(lambda name: filled(1.0, shapes(name))),
        twos=run(lambda name: filled(2.0, shapes(name))),
        codes=run(lambda name: filled(codes[name], shapes(name))),
        rows=run(lambda name: row_numbers(shapes(name))),
        columns=run(lambda name: column_numbers(shapes(name))),
    )


def compute(
    slot: Slot, rows: np.ndarray[Any, Any], read: Callable[[str], torch.Tensor]
) -> np.ndarray[Any, Any]:
    """Rows (n,) of a slot computed from whole tensors, (n, columns), if `trace` gives None."""
    import numpy as np

    return np.asarray(pick(replay(slot, read), rows), np.float64)


def pick(values: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows (n,) of values (…, columns) as (n, columns), without copying repeated ones."""
    import numpy as np

    if values.ndim < 2:  # noqa: PLR2004 - a vector is one row
        return np.asarray(values.reshape(1, -1)[rows])
    return np.asarray(values[np.unravel_index(rows, values.shape[:-1])])


def filled(value: float, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of one value that expands to `shape`: (1, …) with as many dimensions."""
    import torch

    return torch.full([1] * len(shape), value)


def row_numbers(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of row numbers that expands to `shape`: (…, 1), counted through all dimensions."""
    import math

    import torch

    if len(shape) < 2:  # noqa: PLR2004 - a vector is one row
        return filled(0.0, shape)
    return torch.arange(math.prod(shape[:-1]), dtype=torch.float32).reshape(*shape[:-1], 1)


def column_numbers(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of column numbers that expands to `shape`: (columns,)."""
    import torch

    return torch.arange(shape[-1], dtype=torch.float32) if shape else filled(0.0, shape)


def traceable(tensors: MergedTensors) -> MergedTensors:
    """The same tensors with all floats in float32, so that the converter copies none to cast it."""
    from exporter.merge.apply import MergedTensors

    class InFloat32(MergedTensors):
        def dtype(self, name: str) -> torch.dtype:
            import torch

            stored = MergedTensors.stored_dtype(self, name)
            return torch.float32 if stored.is_floating_point else stored

        def read(self, name: str) -> torch.Tensor:
            return MergedTensors.read(self, name).to(self.dtype(name))

    return InFloat32(tensors.plan)
