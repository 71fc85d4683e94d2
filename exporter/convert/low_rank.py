"""A low-rank matrix that llama.cpp's model classes rearrange like a full one.

The classes cut, permute and stack weights. Each such operation on B @ A is an operation on A or B
alone; any other is refused by name, never approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

MATRIX = 2  # dimensions
MERGED_INSTEAD = "leave out `--to lora`: the merged model can hold it"


class Product:
    """The product b @ a, unmultiplied: a is (…, rank, n_in), b is (…, n_out, rank)."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, sources: frozenset[str]) -> None:
        """a, b: as the class describes them; sources: the checkpoint's tensors that they change."""
        assert a.dim() == b.dim(), (a.shape, b.shape)
        assert a.shape[-2] == b.shape[-1], (a.shape, b.shape)
        self.a, self.b, self.sources = a, b, sources

    @property
    def shape(self) -> tuple[int, ...]:
        stacks = (max(one, other) for one, other in zip(self.a.shape, self.b.shape, strict=True))
        return (*list(stacks)[:-2], self.b.shape[-2], self.a.shape[-1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.b.dtype

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def T(self) -> Product:  # noqa: N802 - torch's name
        return self.transpose(0, 1)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def like(self, a: torch.Tensor, b: torch.Tensor) -> Product:
        return Product(a, b, self.sources)

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors, expanded to all leading dimensions."""
        stack = self.shape[:-2]
        return self.a.expand(*stack, *self.a.shape[-2:]), self.b.expand(*stack, *self.b.shape[-2:])

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_zero(self) -> bool:
        """Whether the product is zero, like an untrained pair."""
        return not (bool(self.a.any()) and bool(self.b.any()))

    def __getattr__(self, name: str) -> Any:
        raise cannot(f"do what `.{name}` does")

    def __setitem__(self, index: Any, values: Any) -> None:
        raise cannot("be changed in place")

    def contiguous(self) -> Product:
        return self

    clone = contiguous

    def to(self, *args: Any, **kwargs: Any) -> Product:
        return self.like(self.a.to(*args, **kwargs), self.b.to(*args, **kwargs))

    def float(self) -> Product:
        return self.like(self.a.float(), self.b.float())

    def __mul__(self, factor: Any) -> Product:
        # a factor per row goes to B; one per column would go to A
        if not isinstance(factor, (int, float)) and factor.dim() and factor.shape[-1] != 1:
            raise cannot("be multiplied column by column")
        return self.like(self.a, self.b * factor)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> Product:
        index = index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis for part in index):
            at = next(place for place, part in enumerate(index) if part is Ellipsis)
            fill = (slice(None),) * (self.ndim - len(index) + 1)
            index = (*index[:at], *fill, *index[at + 1 :])
        index = (*index, *(slice(None),) * (self.ndim - len(index)))
        if len(index) != self.ndim or not all(isinstance(part, slice) for part in index[-2:]):
            raise cannot(f"be indexed with {index}")
        *stack, rows, columns = index
        b = self.whole()[1]
        # an A shared by all slices stays shared
        of_a = [
            part if n != 1 else 0 if isinstance(part, int) else slice(None)
            for part, n in zip(stack, self.a.shape[:-2], strict=True)
        ]
        at_a, at_b = (*of_a, slice(None), columns), (*stack, rows, slice(None))
        return self.like(self.a[at_a], b[at_b])

    def reshape(self, *shape: Any) -> Product:
        """Regroup rows and stacks; the columns must stay."""
        wanted = [int(n) for n in (shape[0] if isinstance(shape[0], Sequence) else shape)]
        if -1 in wanted:
            rest = math.prod(n for n in wanted if n != -1)
            wanted[wanted.index(-1)] = math.prod(self.shape) // rest
        if tuple(wanted) == self.shape:
            return self
        if len(wanted) < MATRIX or wanted[-1] != self.shape[-1]:
            raise cannot(f"be reshaped from {list(self.shape)} to {wanted}")
        if any(n != 1 for n in self.a.shape[:-2]):  # each slice of a stack has its A
            raise cannot(f"be reshaped from {list(self.shape)} to {wanted}: it is a stack")
        a = self.a.reshape(*(1 for _ in wanted[:-2]), self.rank, wanted[-1])
        return self.like(a, self.b.reshape(*wanted[:-1], self.rank))

    view = reshape

    def reshape_as(self, other: Any) -> Product:
        return self.reshape(*other.shape)

    def permute(self, *dims: Any) -> Product:
        order = list(dims[0] if isinstance(dims[0], Sequence) else dims)
        order = [n % self.ndim for n in order]
        last = self.ndim - 1
        if order[-1] == last:
            if any(n != 1 for n in self.a.shape[:-2]) and order[-2] != last - 1:
                raise cannot(f"be permuted by {order}: it is a stack")
            stack = [*order[:-2], last - 1, last]
            a = self.a.permute(stack) if order[-2] == last - 1 else self.a
            return self.like(a, self.b.permute(order))
        if order == [*range(last - 1), last, last - 1]:
            a, b = self.whole()
            return self.like(b.transpose(-1, -2), a.transpose(-1, -2))
        raise cannot(f"be permuted by {order}")

    def transpose(self, one: int, other: int) -> Product:
        order = list(range(self.ndim))
        order[one], order[other] = order[other], order[one]
        return self.permute(order)

    swapaxes = transpose

    def split(self, size: int | Sequence[int], dim: int = 0) -> tuple[Product, ...]:
        dim %= self.ndim
        total = self.shape[dim]
        sizes = (
            [min(size, total - first) for first in range(0, total, size)]
            if isinstance(size, int)
            else list(size)
        )
        if sum(sizes) != total:
            raise cannot(f"be split into {sizes}: it has {total}")
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        before = (slice(None),) * dim
        places = [
            (*before, slice(start, start + length))
            for start, length in zip(starts, sizes, strict=True)
        ]
        return tuple(self[place] for place in places)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Product, ...]:
        return self.split(-(-self.shape[dim] // chunks), dim)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        import torch

        del types
        does: dict[Any, Callable[..., Any]] = {
            torch.stack: stacked, torch.cat: joined, torch.concat: joined,
            torch.split: cls.split, torch.chunk: cls.chunk, torch.permute: cls.permute,
            torch.reshape: cls.reshape, torch.transpose: cls.transpose,
            torch.swapaxes: cls.transpose,
        }  # fmt: skip
        if func not in does:
            raise cannot(f"go through torch.{getattr(func, '__name__', func)}")
        return does[func](*args, **(kwargs or {}))


def stacked(parts: Sequence[Product], dim: int = 0) -> Product:
    """Stack parts of one shape along a new first dimension; ranks are padded with zeros."""
    import torch

    if dim != 0:
        raise cannot(f"be stacked along dimension {dim}")
    rank = max(part.rank for part in parts)
    wide = [widened(part, rank) for part in parts]
    return Product(
        torch.stack([part.a for part in wide]),
        torch.stack([part.b for part in wide]),
        frozenset().union(*(part.sources for part in parts)),
    )


def widened(part: Product, rank: int) -> Product:
    """The same product with a larger rank, padded with zeros."""
    from torch.nn.functional import pad

    extra = rank - part.rank
    return part.like(pad(part.a, (0, 0, 0, extra)), pad(part.b, (0, extra)))


def joined(parts: Sequence[Product], dim: int = 0) -> Product:
    """Concatenate parts along `dim`. Rows without a common A, and columns, get separate ranks."""
    import torch

    dim %= parts[0].ndim
    sources = frozenset().union(*(part.sources for part in parts))
    rows, columns = parts[0].ndim - 2, parts[0].ndim - 1
    shared = all(torch.equal(part.a, parts[0].a) for part in parts)
    if shared and dim < columns and (dim == rows or parts[0].a.shape[dim] == 1):
        return Product(parts[0].a, torch.cat([part.whole()[1] for part in parts], dim), sources)
    if dim < rows:
        rank = max(part.rank for part in parts)
        both = [widened(part, rank).whole() for part in parts]
        return Product(
            torch.cat([a for a, _ in both], dim), torch.cat([b for _, b in both], dim), sources
        )
    both = [part.whole() for part in parts]
    if dim == columns:
        a = block_diagonal([a for a, _ in both])
        return Product(a, torch.cat([b for _, b in both], -1), sources)
    return Product(
        torch.cat([a for a, _ in both], -2), block_diagonal([b for _, b in both]), sources
    )


def block_diagonal(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Block-diagonal matrix of blocks (…, rows, columns), with zeros elsewhere."""
    height = sum(block.shape[-2] for block in blocks)
    width = sum(block.shape[-1] for block in blocks)
    result = blocks[0].new_zeros(*blocks[0].shape[:-2], height, width)
    row = column = 0
    for block in blocks:
        result[..., row : row + block.shape[-2], column : column + block.shape[-1]] = block
        row, column = row + block.shape[-2], column + block.shape[-1]
    return result


class CannotFollowError(UnsupportedError, AttributeError):
    """The operation on a weight cannot be applied to A and B separately.

    It is an AttributeError too, so that `hasattr` is false for attributes that a Product lacks.
    """


def cannot(what: str) -> CannotFollowError:
    return CannotFollowError(
        f"llama.cpp rearranges this model's weights in a way that A and B cannot follow:"
        f" they cannot {what}",
        hint=MERGED_INSTEAD,
    )
