"""Pairs of A and B whose weight llama.cpp's classes rearrange value by value.

Where an operation cannot be done to A and B apart (Product refuses it), the class is run on
matrices that hold their own row and column numbers. If each row of what it makes is one row of
the weight, and each column one column, the same is done to B and to A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from exporter.convert.low_rank import MERGED_INSTEAD, Product
from exporter.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

Rearrange = Callable[[Any], Iterable[tuple[str, Any]]]
"""What a class makes of one weight: tensors by their GGUF names."""
CLOSE = 1e-5
EXACT = 1 << 24  # whole numbers that float32 holds
MATRIX = 2  # dimensions


def retraced(product: Product, rearrange: Rearrange) -> list[tuple[str, Product]]:
    """What a class makes of a pair's product, by running it on numbered matrices.

    product: (n_out, n_in). Raises UnsupportedError when the class does more to a weight than to
    move and scale its rows and columns, such as rounding it.
    """
    import torch

    n_out, n_in = product.shape
    if max(n_out, n_in) >= EXACT:
        raise not_linear()

    def made_of(weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        return [(name, eager(values)) for name, values in rearrange(weight.clone())]

    numbers = torch.arange(1, max(n_out, n_in) + 1, dtype=torch.float32)
    chance = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    factors = made_of(torch.ones(n_out, n_in))
    runs = zip(
        factors,
        made_of(torch.zeros(n_out, n_in)),
        made_of(numbers[:n_out, None].expand(n_out, n_in)),
        made_of(numbers[None, :n_in].expand(n_out, n_in)),
        made_of(chance),
        strict=True,
    )
    found = []
    for (name, factor), (_, offset), (_, rows), (_, columns), (_, check) in runs:
        if factor.dim() != MATRIX or bool(offset.any()):
            raise not_linear()
        row, column = places(rows / factor, 0, n_out), places(columns / factor, 1, n_in)
        expected = factor * chance[row][:, column]
        by_row, by_column = factor[:, :1], factor[:1] / factor[:1, :1]  # (rows, 1), (1, columns)
        if not (close(check, expected) and close(factor, by_row * by_column)):
            raise not_linear()
        a, b = product.a[:, column] * by_column, product.b[row] * by_row
        found.append((name, product.like(a, b)))
    return found


def places(numbers: torch.Tensor, dim: int, limit: int) -> torch.Tensor:
    """Which row (dim 0) or column (dim 1) of the weight each of the result's comes from."""
    lines = numbers[:, 0] if dim == 0 else numbers[0]
    whole = lines.round()
    same = numbers - (whole[:, None] if dim == 0 else whole[None, :])
    inside = bool(((whole >= 1) & (whole <= limit)).all())
    if not inside or not bool((same.abs() < 1 / 4).all()):
        raise not_linear()
    return whole.long() - 1


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    reach = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and bool(((one - other).abs() <= CLOSE * reach).all())


def eager(values: Any) -> Any:
    """The values of a tensor that the class may have made one of its lazy ones of."""
    to_eager = getattr(type(values), "to_eager", None)
    return values if to_eager is None else to_eager(values)


def not_linear() -> UnsupportedError:
    return UnsupportedError(
        "llama.cpp's converter does more to this model's weights than to move and scale their rows"
        " and columns (it rounds or mixes them), which cannot be done to A and B",
        hint=MERGED_INSTEAD,
    )
