"""Merged tensors in blocks of rows, which several threads compute at the same time.

Each row of a plain LoRA's product depends on one row of B: a block is read, gets its rows of the
products and is rounded, with the same values as the whole tensor. Its temporaries stay in a core's
cache, and their memory is used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from exporter.core.safetensors import ITEM_BYTES
from exporter.inputs.lazy_tensor import converted, read_tensor, take_bytes

if TYPE_CHECKING:
    import torch

    from exporter.core.buffer_pool import Pool
    from exporter.core.safetensors import StoredTensor
    from exporter.merge.operations import LoraSum

TILE = 48  # rows: a multiple of the tiles of usual sizes, 4, 6, 8, 12, 16 and 24
BLOCK_VALUES = 1 << 19  # values of a block: 2 MiB of float32, which a core's cache holds
PROOF_VALUES = 1 << 21  # values of a product that is computed whole and in blocks


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows of a tensor, counted through its leading dimensions."""

    n_rows: int
    compute: Callable[[], torch.Tensor]
    """Returns the rows (n_rows, columns); any thread may call it."""
    is_held: bool = False
    """Whether the whole tensor is in memory as long as the block."""

    def of_type(self, dtype: torch.dtype) -> RowBlock:
        """The block with its values converted to `dtype`."""
        return replace(self, compute=lambda: self.compute().to(dtype))


def row_bounds(n_rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The first row of each block of a matrix, and the one after its last.

    Libraries multiply a tile of rows at a time, and round the rows that are left at the end
    otherwise. So every block begins at a multiple of TILE, and the last one is not smaller.
    """
    step = max(1, round(BLOCK_VALUES / max(1, columns * TILE))) * TILE
    starts = range(0, max(1, n_rows - step + 1), step)
    return zip(starts, (*starts[1:], n_rows), strict=True)


def held_blocks(values: torch.Tensor) -> Iterator[RowBlock]:
    """The blocks of a tensor (…, columns) in memory."""
    rows = values.reshape(-1, values.shape[-1] if values.dim() else 1)
    for first, last in row_bounds(*rows.shape):
        yield RowBlock(last - first, partial(rows.narrow, 0, first, last - first), is_held=True)


def stored_blocks(
    stored: StoredTensor, compute: Callable[[StoredTensor, int], torch.Tensor]
) -> Iterator[RowBlock]:
    """The blocks of a tensor in a file.

    compute: returns a block's rows (n_rows, columns), from their place in the file and the number
    of the first one.
    """
    n_rows, columns = math.prod(stored.shape[:-1]), stored.shape[-1] if stored.shape else 1
    row_nbytes = columns * ITEM_BYTES[stored.dtype]
    for first, last in row_bounds(n_rows, columns):
        shape, offset = (last - first, columns), stored.offset + first * row_nbytes
        part = replace(stored, shape=shape, offset=offset)
        yield RowBlock(last - first, partial(compute, part, first))


@dataclass(frozen=True, slots=True)
class PlainSum:
    """A plain pair's update of a weight (rows, columns): factor * left @ right."""

    left: torch.Tensor  # (rows, rank), in float32
    right: torch.Tensor  # (rank, columns), in float32
    factor: float

    @classmethod
    def of(cls, step: LoraSum) -> PlainSum:
        """Read a pair, in the type in which PEFT trains and merges, whatever the file holds."""
        a, b = (read_tensor(half).float() for half in (step.pair.a, step.pair.b))
        left, right = (b, a) if step.kind == "linear" else (a.T, b.T)
        return cls(left, right, step.scaling * step.scale)

    def is_same_by_rows(self) -> bool:
        """Whether the blocks of the product have the bits of the whole one, as far as tried.

        Libraries for other processors may multiply the last rows of a block in another order.
        """
        import torch

        count = max(1, PROOF_VALUES // self.right.shape[1])
        part = PlainSum(self.left[:count], self.right, self.factor)
        product = part.left @ part.right
        added = product.flip(0)
        whole = added.addmm(part.left, part.right, alpha=self.factor)
        for start, stop in row_bounds(*product.shape):
            part.add(added[start:stop], start)
            if not torch.equal(part.left[start:stop] @ part.right, product[start:stop]):
                return False
        return torch.equal(added, whole)

    def add(self, weight: torch.Tensor, first: int = 0) -> None:
        """Add exactly, in place, to rows (n, columns) in float32, from number `first` on."""
        weight.addmm_(self.left[first : first + len(weight)], self.right, alpha=self.factor)

    def add_rounded(self, weight: torch.Tensor, pool: Pool, first: int = 0) -> None:
        """Add to rows (n, columns) in place as PEFT's linear layer does: in float32, then rounded
        to the weight's type.

        Temporaries have the size of a block.
        """
        import torch

        for start, stop in row_bounds(*weight.shape):
            rows = weight[start:stop]
            nbytes = rows.numel() * torch.float32.itemsize
            product = take_bytes(pool, nbytes).view(torch.float32).reshape(rows.shape)
            torch.mm(self.left[first + start : first + stop], self.right, out=product)
            product *= self.factor
            if rows.dtype in (torch.float32, torch.float64):
                rows += product
            else:  # torch would do the same with new temporaries
                rows.copy_(converted(rows, torch.float32, pool).add_(product))
