"""Rearranges pairs A and B as llama.cpp's classes rearrange a weight's values.

If an operation cannot be applied to A and B separately (Product refuses it), the class runs on
matrices that hold their row and column numbers. If each row of the result is one row of the weight,
and each column one column, B's rows and A's columns are moved in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from exporter.convert.low_rank import MERGED_INSTEAD, Product
from exporter.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

Rearrange = Callable[[Any], Iterable[tuple[str, Any]]]
"""A class's outputs for one weight: tensors by their GGUF names."""
CLOSE = 1e-5  # relative tolerance of equal values
EXACT = 1 << 24  # largest range of integers that float32 holds exactly
MATRIX = 2  # dimensions


def retraced(product: Product, rearrange: Rearrange) -> list[tuple[str, Product]]:
    """A class's outputs for a pair's product, found by running it on numbered matrices.

    product: (n_out, n_in). Raises UnsupportedError if the class does more to a weight than to move
    and scale its rows and columns, such as rounding it.
    """
    import torch

    n_out, n_in = product.shape
    if max(n_out, n_in) >= EXACT:
        raise not_linear()

    def made_of(weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        return [(name, eager(values)) for name, values in rearrange(weight.clone())]

    numbers = torch.arange(1, max(n_out, n_in) + 1, dtype=torch.float32)
    random_values = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    factors = made_of(torch.ones(n_out, n_in))
    runs = zip(
        factors,
        made_of(torch.zeros(n_out, n_in)),
        made_of(numbers[:n_out, None].expand(n_out, n_in)),
        made_of(numbers[None, :n_in].expand(n_out, n_in)),
        made_of(random_values),
        strict=True,
    )
    found = []
    for (name, factor), (_, offset), (_, rows), (_, columns), (_, check) in runs:
        if factor.dim() != MATRIX or bool(offset.any()):
            raise not_linear()
        row, column = places(rows / factor, 0, n_out), places(columns / factor, 1, n_in)
        expected = factor * random_values[row][:, column]
        by_row, by_column = factor[:, :1], factor[:1] / factor[:1, :1]  # (rows, 1), (1, columns)
        if not (close(check, expected) and close(factor, by_row * by_column)):
            raise not_linear()
        a, b = product.a[:, column] * by_column, product.b[row] * by_row
        found.append((name, product.like(a, b)))
    return found


def places(numbers: torch.Tensor, dim: int, limit: int) -> torch.Tensor:
    """The source rows (dim 0) or columns (dim 1) of a result's lines.

    numbers: (rows, columns) with the source number, from 1, in each value; limit: the largest.
    Returns indices from 0, (rows,) or (columns,). Raises UnsupportedError if a line has several
    sources.
    """
    lines = numbers[:, 0] if dim == 0 else numbers[0]
    whole = lines.round()
    same = numbers - (whole[:, None] if dim == 0 else whole[None, :])
    inside = bool(((whole >= 1) & (whole <= limit)).all())
    if not inside or not bool((same.abs() < 1 / 4).all()):
        raise not_linear()
    return whole.long() - 1


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors (rows, columns) are equal within CLOSE of the largest value."""
    reach = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and bool(((one - other).abs() <= CLOSE * reach).all())


def eager(values: Any) -> Any:
    """The values of a tensor that may be one of the class's lazy ones."""
    to_eager = getattr(type(values), "to_eager", None)
    return values if to_eager is None else to_eager(values)


def not_linear() -> UnsupportedError:
    return UnsupportedError(
        "llama.cpp's converter does more to this model's weights than to move and scale their rows"
        " and columns (it rounds or mixes them), which cannot be done to A and B",
        hint=MERGED_INSTEAD,
    )
