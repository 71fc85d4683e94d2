"""NF4 fake-quantization: the base's weights as a QLoRA training saw them.

An adapter from QLoRA learns the difference to these weights, not to the original 16-bit ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.inputs.lazy_tensor import Tensor, read_tensor
from exporter.inputs.quantized.bitsandbytes import CHUNK, NF4, scale_blocks

if TYPE_CHECKING:
    import torch

    from exporter.inputs.checkpoint import Checkpoint

BLOCK = 64  # values per scale in QLoRA
NESTED_BLOCK = 256  # scales per second-level scale
SMALLEST = 1e-38  # bitsandbytes' stand-in for the scale of a block of zeros


@dataclass(frozen=True, slots=True)
class FakeQuantized:
    """A weight that is quantized to NF4 and dequantized when it is read."""

    plain: Tensor
    double_quant: bool
    turned: bool
    """Whether its module keeps it as (n_in, n_out), which bitsandbytes transposes first."""

    @property
    def name(self) -> str:
        return self.plain.name

    @property
    def dtype(self) -> str:
        return self.plain.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.plain.shape

    @property
    def nbytes(self) -> int:
        return self.plain.nbytes

    def read(self) -> torch.Tensor:
        weight = read_tensor(self.plain)
        if self.turned:
            turned = nf4_fake_quantize(weight.T.contiguous(), double_quant=self.double_quant)
            return turned.T.contiguous()
        return nf4_fake_quantize(weight, double_quant=self.double_quant)


def fake_quantized(
    checkpoint: Checkpoint, linear: dict[str, bool], *, double_quant: bool
) -> Checkpoint:
    """The checkpoint with NF4 fake-quantization of the weights in `linear`; see
    `linear_weights`.
    """
    tensors = {
        name: FakeQuantized(tensor, double_quant, linear[name]) if name in linear else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def nf4_fake_quantize(
    weight: torch.Tensor,
    *,
    double_quant: bool,
    block: int = BLOCK,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Quantize to NF4 and dequantize as bitsandbytes does, bit for bit.

    weight: any shape (…, columns), 16 or 32 bits; the result has the same shape, in `dtype` or the
    weight's type. With `double_quant` the scales are quantized too, to the nearest code as on a
    GPU. Uses a few MB besides the result.
    """
    import torch

    flat = weight.reshape(-1)
    absmax = block_maxima(flat, block)
    scales = fake_quantize_scales(absmax) if double_quant else absmax
    table = torch.tensor(NF4, dtype=torch.float32)
    bounds = (table[:-1] + table[1:]) / 2
    out = torch.empty(flat.shape, dtype=dtype or weight.dtype)
    for at in range(0, len(flat), CHUNK):
        values, here = flat[at : at + CHUNK].to(torch.float32, copy=True), slice(at // block, None)
        normalize(values, absmax[here], block)
        codes = torch.bucketize(values, bounds, out_int32=True)
        values = table.index_select(0, codes)
        scale_blocks(values, scales[here], block)
        out[at : at + CHUNK] = values
    return out.reshape(weight.shape)


def block_maxima(flat: torch.Tensor, block: int) -> torch.Tensor:
    """The largest magnitude in each run of `block` values: (n,) → (ceil(n / block),) in float32."""
    import torch

    maxima = torch.empty(-(-len(flat) // block), dtype=torch.float32)
    for at in range(0, len(flat), CHUNK):
        values, first = flat[at : at + CHUNK].abs().float(), at // block
        full = len(values) // block
        if full:
            maxima[first : first + full] = values[: full * block].view(-1, block).amax(dim=1)
        if full * block < len(values):
            maxima[first + full] = values[full * block :].max().clamp(min=SMALLEST)
    return maxima


def normalize(values: torch.Tensor, absmax: torch.Tensor, block: int) -> None:
    """Scale each run of `block` values to [-1, 1] in place. values: (n,), absmax: (blocks,)."""
    full = len(values) // block
    inverse = 1.0 / absmax[:full, None].clamp(min=SMALLEST)
    values[: full * block].view(-1, block).mul_(inverse)
    if full * block < len(values):
        values[full * block :].div_(absmax[full])
    values.clamp_(-1, 1)


def fake_quantize_scales(absmax: torch.Tensor) -> torch.Tensor:
    """Quantize scales (blocks,) to 8 bits and back: their distance to the mean, in blocks."""
    import torch

    table = dynamic_table()
    offset = absmax.mean()
    values = absmax - offset
    maxima = block_maxima(values, NESTED_BLOCK)
    normalize(values, maxima, NESTED_BLOCK)
    codes = torch.bucketize(values, (table[:-1] + table[1:]) / 2, out_int32=True)
    values = table.index_select(0, codes)
    scale_blocks(values, maxima, NESTED_BLOCK)
    return values + offset


def dynamic_table() -> torch.Tensor:
    """bitsandbytes' signed 8-bit type as a table (256,): seven decades, finer for large values.

    8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561
    """
    import torch

    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32)
