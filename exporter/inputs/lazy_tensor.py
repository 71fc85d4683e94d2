"""Tensors with a known name, shape and type that are read on demand, wherever they lie."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from exporter.core.buffer_pool import Pool
from exporter.core.errors import CheckpointError
from exporter.core.safetensors import ITEM_BYTES, StoredTensor

if TYPE_CHECKING:
    import torch

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class LazyTensor(Protocol):
    """A tensor that is computed when it is read, such as a quantized one on disk."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """The type of the result of `read`, as safetensors spells it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def read(self) -> torch.Tensor:
        """The values, of shape `shape`, in a new buffer that may be changed in place."""


Tensor = StoredTensor | LazyTensor


def read_tensor(tensor: Tensor, pool: Pool | None = None) -> torch.Tensor:
    """The values, of the tensor's `shape` (rows, columns), in a new buffer, from `pool` if given.

    The buffer may be changed in place.
    """
    return read_stored(tensor, pool) if isinstance(tensor, StoredTensor) else tensor.read()


@dataclass(frozen=True, slots=True)
class Turned:
    """A matrix, read with rows and columns exchanged."""

    name: str
    stored: Tensor

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def read(self) -> torch.Tensor:
        """The transposed tensor, (columns, rows) of the stored one, in a new buffer."""
        return read_tensor(self.stored).T.contiguous()


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor under another name than the stored one."""

    name: str
    stored: LazyTensor

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def read(self) -> torch.Tensor:
        """The stored tensor's values, of its shape."""
        return self.stored.read()


def renamed(tensor: Tensor, name: str) -> Tensor:
    """The tensor under another name, its shape (rows, columns) unchanged."""
    if tensor.name == name:
        return tensor
    if isinstance(tensor, StoredTensor):
        return replace(tensor, name=name)
    return Renamed(name, tensor)


def read_stored(tensor: StoredTensor, pool: Pool | None = None) -> torch.Tensor:
    """Read a stored tensor, (rows, columns) or any shape, into a new buffer, from `pool` if given.

    The file is not mapped: mapped pages would count as this process's memory. Raises
    CheckpointError if the file has become shorter.
    """
    import torch

    if pool is None or not tensor.nbytes:
        values = torch.empty(tensor.nbytes, dtype=torch.uint8)
    else:
        values = take_bytes(pool, tensor.nbytes)
    view, done = values.numpy().data, 0
    file = os.open(tensor.path, os.O_RDONLY)
    try:
        while done < tensor.nbytes:
            got = os.preadv(file, [view[done:]], tensor.offset + done)
            if not got:
                raise CheckpointError(
                    f"`{tensor.path}` ended inside tensor `{tensor.name}`",
                    hint="the file has changed since it was opened; download or copy it again",
                )
            done += got
    finally:
        os.close(file)
    return values.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def converted(values: torch.Tensor, dtype: torch.dtype, pool: Pool) -> torch.Tensor:
    """The values (…, columns) as `dtype`, from `pool`; unchanged if they have it already."""
    if values.dtype == dtype or not values.numel():
        return values.to(dtype)
    target = take_bytes(pool, values.numel() * dtype.itemsize).view(dtype)
    return target.reshape(values.shape).copy_(values)


def take_bytes(pool: Pool, nbytes: int) -> torch.Tensor:
    """An uninitialized uint8 tensor (nbytes,) in a buffer of the pool."""
    import torch

    return torch.frombuffer(pool.take(nbytes), dtype=torch.uint8)


def torch_dtype(dtype: str) -> torch.dtype:
    import torch

    found = getattr(torch, DTYPES[dtype])
    assert isinstance(found, torch.dtype)
    return found


def dtype_name(dtype: torch.dtype) -> str | None:
    """The safetensors name of a torch type; None for an unknown one."""
    torch_name = str(dtype).removeprefix("torch.")
    return next((name for name, known in DTYPES.items() if known == torch_name), None)


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]
