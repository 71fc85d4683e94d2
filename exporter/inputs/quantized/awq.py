"""Bases that AWQ quantized, as AutoAWQ saves them (version GEMM), dequantized when read.

Eight 4-bit codes lie in one 32-bit word, columns of the output in the order 0 2 4 6 1 3 5 7; a
scale and a zero belong to each output and each group of inputs. https://github.com/casper-hansen
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.core.errors import CheckpointError
from exporter.inputs.lazy_tensor import Tensor, nbytes_of, read_tensor

if TYPE_CHECKING:
    import torch

PARTS = ("qweight", "qzeros", "scales")
BITS = 4  # of a code
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each column in its word: the inverse of the order above
COLUMNS = len(PLACES)


@dataclass(frozen=True, slots=True)
class Linear:
    """The weight of one linear layer."""

    name: str
    qweight: Tensor  # (n_in, n_out / 8), int32
    qzeros: Tensor  # (groups, n_out / 8), int32
    scales: Tensor  # (groups, n_out), float16

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_out, n_in), as in transformers' linear layer."""
        return self.scales.shape[1], self.qweight.shape[0]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> torch.Tensor:
        """The values, (n_out, n_in) in float32: (code - zero) * scale."""
        scales = read_tensor(self.scales).float()  # (groups, n_out)
        zeros = codes(read_tensor(self.qzeros)).float()  # (groups, n_out)
        values = codes(read_tensor(self.qweight)).float()  # (n_in, n_out)
        grouped = values.view(scales.shape[0], -1, scales.shape[1])  # (groups, in a group, n_out)
        grouped.sub_(zeros[:, None]).mul_(scales[:, None])
        return values.T.contiguous()


def codes(words: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes in 32-bit words: (rows, columns / 8) → (rows, columns)."""
    import torch

    shifts = torch.tensor(PLACES, dtype=torch.int32) * BITS
    return ((words[..., None] >> shifts) & 0xF).flatten(1)


def is_quantized(config: Mapping[str, object]) -> bool:
    """Whether a config describes AWQ in the form that this module reads."""
    settings = config.get("quantization_config")
    return (
        isinstance(settings, dict)
        and settings.get("quant_method") == "awq"
        and str(settings.get("version", "gemm")).lower() == "gemm"
        and settings.get("bits", BITS) == BITS
    )


def dequantized(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:  # noqa: ARG001 - as of every kind
    """Replace AWQ's weights by plain ones (n_out, n_in), in the same order.

    Raises CheckpointError for a weight whose parts are missing or do not fit together.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == PARTS[0]:
            plain[f"{module}.weight"] = linear(module, tensors)
        elif leaf not in PARTS:
            plain[name] = tensor
    return plain


def linear(module: str, tensors: Mapping[str, Tensor]) -> Linear:
    """The weight (n_out, n_in) of one module. Raises CheckpointError for unfit parts."""
    parts = [tensors.get(f"{module}.{part}") for part in PARTS]
    qweight, qzeros, scales = parts
    if qweight is None or qzeros is None or scales is None or not fit(qweight, qzeros, scales):
        shapes = [list(part.shape) if part else "missing" for part in parts]
        raise CheckpointError(
            f"the quantized weight `{module}` is no complete AWQ weight:"
            f" {', '.join(f'{part} {shape}' for part, shape in zip(PARTS, shapes, strict=True))}",
            hint="download or copy the folder again",
        )
    return Linear(f"{module}.weight", qweight, qzeros, scales)


def fit(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> bool:
    """Whether qweight (n_in, n_out / 8), qzeros (groups, n_out / 8) and scales (groups,
    n_out) fit.
    """
    if not all(len(part.shape) == 2 for part in (qweight, qzeros, scales)):  # noqa: PLR2004
        return False
    (n_in, words), (groups, n_out) = qweight.shape, scales.shape
    return (
        words * COLUMNS == n_out
        and qzeros.shape == (groups, words)
        and groups > 0
        and n_in % groups == 0
        and (qweight.dtype, qzeros.dtype) == ("I32", "I32")
    )
