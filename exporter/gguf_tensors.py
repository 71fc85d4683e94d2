"""Tensors of a GGUF file as tensors that are known and not read; quantized ones as float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import UnsupportedError
from exporter.core.gguf import TensorInfo
from exporter.core.safetensors import StoredTensor
from exporter.tensors import Tensor, nbytes_of

if TYPE_CHECKING:
    import torch

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor, dequantized by the build's own gguf-py when it is read."""

    name: str
    shape: tuple[int, ...]
    info: TensorInfo
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values in float32. Raises UnsupportedError for a type that gguf-py cannot read."""
        import numpy as np
        import torch

        from exporter.convert import imported
        from exporter.toolchain import find_toolchain

        info = self.info
        raw = np.fromfile(info.path, np.uint8, info.nbytes, offset=info.offset)
        with imported(find_toolchain()):
            import gguf

            try:
                values = gguf.quants.dequantize(
                    raw.reshape(-1, info.type.row_nbytes(info.shape[-1])),
                    gguf.GGMLQuantizationType(info.type.number),
                )
            except NotImplementedError as error:
                raise UnsupportedError(
                    f"`{info.name}` in `{info.path}` is {info.type.name}, which nothing reads back",
                    hint="use a file of another type, such as Q8_0 or F16",
                ) from error
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(self.shape)


def gguf_tensor(info: TensorInfo, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor of a GGUF under a name of the caller's; shape: the same values in other rows."""
    shape = shape or info.shape
    assert math.prod(shape) == math.prod(info.shape)
    if info.type.name in FLOATS:
        return StoredTensor(name, info.type.name, shape, info.path, info.offset)
    return Quantized(name, shape, info)
