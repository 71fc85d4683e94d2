"""gpt-oss as published: experts in MXFP4, dequantized when they are read.

A value is one of 16 steps times a power of two that 32 values in a row share (OCP Microscaling
Formats 1.0); both fit into bfloat16, so nothing is rounded. https://huggingface.co/openai
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import CheckpointError
from exporter.inputs.lazy_tensor import Tensor, nbytes_of, read_tensor

if TYPE_CHECKING:
    import torch

NOTE = "its experts are published in MXFP4: `-q MXFP4_MOE` keeps them unchanged"
BLOCKS, SCALES = "_blocks", "_scales"
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1; the fourth bit is the sign
HALF = 16  # bytes of a block: 32 values, the first of each pair in the low half of a byte
BIAS = 127  # of the exponents in E8M0
PACKED = 4  # dimensions


@dataclass(frozen=True, slots=True)
class Experts:
    """One matrix of all experts of a layer."""

    name: str
    blocks: Tensor  # (experts, n_out, n_in / 32, 16)
    scales: Tensor  # (experts, n_out, n_in / 32)

    @property
    def dtype(self) -> str:
        return "BF16"

    @property
    def shape(self) -> tuple[int, ...]:
        """(experts, n_in, n_out), as in transformers' memory."""
        experts, n_out, groups, _ = self.blocks.shape
        return experts, groups * 2 * HALF, n_out

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values, (experts, n_in, n_out) in bfloat16."""
        import torch

        steps = torch.tensor([*STEPS, *(-step for step in STEPS)], dtype=torch.bfloat16)
        blocks, scales = read_tensor(self.blocks), read_tensor(self.scales).int() - BIAS
        values = torch.empty(self.shape, dtype=torch.bfloat16)
        for expert, packed in enumerate(blocks):
            halves = torch.stack((packed & 0xF, packed >> 4), dim=-1)  # (n_out, groups, 16, 2)
            rows = torch.ldexp(steps[halves.int()].flatten(2), scales[expert].unsqueeze(-1))
            values[expert] = rows.flatten(1).T  # (n_in, n_out)
        return values


def is_quantized(config: Mapping[str, object]) -> bool:
    settings = config.get("quantization_config")
    return isinstance(settings, dict) and settings.get("quant_method") == "mxfp4"


def dequantized(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:  # noqa: ARG001 - as of every kind
    """Replace MXFP4 experts by bfloat16 ones (experts, n_in, n_out), in the same order.

    Raises CheckpointError for blocks without their scales.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(BLOCKS)
        if name.endswith(SCALES) and f"{name.removesuffix(SCALES)}{BLOCKS}" in tensors:
            continue
        plain[stem] = unpacked(stem, tensors) if stem != name else tensor
    return plain


def unpacked(stem: str, tensors: Mapping[str, Tensor]) -> Experts:
    """The experts (experts, n_in, n_out) of `stem`. Raises CheckpointError for unfit parts."""
    blocks, scales = (tensors.get(f"{stem}{end}") for end in (BLOCKS, SCALES))
    assert blocks is not None
    fits = (
        scales is not None
        and len(blocks.shape) == PACKED
        and blocks.shape[-1] == HALF
        and blocks.shape[:-1] == scales.shape
        and (blocks.dtype, scales.dtype) == ("U8", "U8")
    )
    if scales is None or not fits:
        raise CheckpointError(
            f"`{stem}{BLOCKS}` {list(blocks.shape)} has no fitting"
            f" `{stem}{SCALES}` ({list(scales.shape) if scales else 'missing'})",
            hint="download or copy the folder again",
        )
    return Experts(stem, blocks, scales)
