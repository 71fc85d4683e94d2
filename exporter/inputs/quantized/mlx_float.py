"""MLX's floating-point quantizations, undone tensor by tensor: mxfp4, mxfp8 and nvfp4.

A code is a small float (E2M1 of 4 bits, E4M3 of 8), its group's scale a power of two (E8M0) or an
E4M3. Both are those of the OCP Microscaling Formats 1.0; a product fits into bfloat16, so nothing
is rounded. https://ml-explore.github.io/mlx, mlx.core.quantize
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.core.safetensors import StoredTensor
from exporter.inputs.lazy_tensor import nbytes_of, read_tensor
from exporter.inputs.quantized.mxfp4 import BIAS, STEPS

if TYPE_CHECKING:
    import torch


CHUNK = 1 << 20  # values dequantized at a time


@dataclass(frozen=True, slots=True)
class Mode:
    """The format of a group of values in one of MLX's modes."""

    bits: int
    """Bits per code: 4 is E2M1, 8 is E4M3."""
    group: int
    has_e4m3_scales: bool


MODES = {"mxfp4": Mode(4, 32, False), "mxfp8": Mode(8, 32, False), "nvfp4": Mode(4, 16, True)}


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """A weight in codes of 4 or 8 bits, with a scale for each group of a row."""

    name: str
    shape: tuple[int, ...]
    packed: StoredTensor  # (…, n_in * bits / 32), uint32
    scales: StoredTensor  # (…, n_in / group), uint8
    mode: str
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values, (…, n_in) in float32: a code times the scale of its group."""
        import torch

        mode = MODES[self.mode]
        columns = self.shape[-1]
        packed = read_tensor(self.packed).view(torch.uint8).reshape(-1, columns * mode.bits // 8)
        scales = read_tensor(self.scales).reshape(len(packed), -1)
        value = e2m1 if mode.bits == 4 else e4m3  # noqa: PLR2004
        scale: Callable[[torch.Tensor], torch.Tensor] = e4m3 if mode.has_e4m3_scales else e8m0
        out = torch.empty(len(packed), columns)
        rows = max(1, CHUNK // columns)
        for at in range(0, len(out), rows):
            some = slice(at, at + rows)
            groups = value(packed[some].flatten()).view(-1, mode.group)
            out[some] = (groups * scale(scales[some].flatten())[:, None]).view(-1, columns)
        return out.reshape(self.shape)

    def at(self, place: int, name: str) -> FloatWeight:
        """The weight of one expert."""
        packed, scales = slice_of(self.packed, place), slice_of(self.scales, place)
        return replace(self, name=name, shape=self.shape[1:], packed=packed, scales=scales)


def slice_of(tensor: StoredTensor, place: int, name: str = "") -> StoredTensor:
    """The slice tensor[place], which is contiguous in the file."""
    step = tensor.nbytes // tensor.shape[0]
    return replace(
        tensor,
        name=name or tensor.name,
        shape=tensor.shape[1:],
        offset=tensor.offset + place * step,
    )


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    """(bytes,) with two codes each, the low half first → (2 * bytes,) in float32."""
    import torch

    steps = torch.tensor([*STEPS, *(-step for step in STEPS)])
    return steps[torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten().int()]


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    """(bytes,) → (bytes,) in float32."""
    import torch

    return codes.view(torch.float8_e4m3fn).float()


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """(bytes,) exponents → (bytes,) powers of two in float32."""
    import torch

    return torch.ldexp(torch.ones(len(codes)), codes.int() - BIAS)
