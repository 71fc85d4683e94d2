"""Tensors of a GGUF file that are not read yet; quantized ones read as float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.core.errors import UnsupportedError
from exporter.core.gguf import TensorInfo
from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import Tensor, nbytes_of

if TYPE_CHECKING:
    import numpy as np
    import torch

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor, dequantized by the build's gguf-py when it is read."""

    name: str
    shape: tuple[int, ...]
    info: TensorInfo
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values in float32, of shape `shape`. Raises UnsupportedError as `dequantize` does."""
        import numpy as np
        import torch

        raw = np.fromfile(self.info.path, np.uint8, self.info.nbytes, offset=self.info.offset)
        values = np.ascontiguousarray(self.dequantize(raw.reshape(self.packed)))
        return torch.from_numpy(values).reshape(self.shape)

    def rows(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Some rows (n, columns) in float32; numbers (n,) count through all leading dimensions."""
        import numpy as np

        stored = np.memmap(self.info.path, np.uint8, "r", self.info.offset, shape=self.packed)
        return self.dequantize(np.ascontiguousarray(stored[numbers]))

    @property
    def packed(self) -> tuple[int, int]:
        """Shape of the stored bytes: (rows, bytes of a row)."""
        columns = self.info.shape[-1]
        return math.prod(self.info.shape) // columns, self.info.type.row_nbytes(columns)

    def dequantize(self, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Dequantize rows of bytes (n, row_nbytes) to float32 (n, columns).

        Raises UnsupportedError for a type that gguf-py cannot read.
        """
        from exporter.llamacpp.converter_import import imported
        from exporter.llamacpp.toolchain import find_toolchain

        with imported(find_toolchain()):
            import gguf

            try:
                values: np.ndarray[Any, Any] = gguf.quants.dequantize(
                    raw, gguf.GGMLQuantizationType(self.info.type.number)
                )
            except NotImplementedError as error:
                raise UnsupportedError(
                    f"`{self.name}` in `{self.info.path}` is {self.info.type.name}, which gguf-py"
                    " cannot read",
                    hint="use a file of another type, such as Q8_0 or F16",
                ) from error
        return values


def gguf_tensor(info: TensorInfo, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor of a GGUF under the name `name`; shape: another (rows, columns) for its values."""
    shape = shape or info.shape
    assert math.prod(shape) == math.prod(info.shape)
    if info.type.name in FLOATS:
        return StoredTensor(name, info.type.name, shape, info.path, info.offset)
    return Quantized(name, shape, info)
