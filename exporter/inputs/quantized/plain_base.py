"""The one entry to bases that are stored quantized.

A kind is a module with `is_quantized(config)` and `dequantized(tensors, config)`; a new kind is
such a file and a line in KINDS. llama.cpp's converter dequantizes fp8, GPTQ and
compressed-tensors (via_llamacpp); it refuses the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exporter.core.events import Note, Report, silent
from exporter.inputs.lazy_tensor import Tensor
from exporter.inputs.quantized import awq, bitsandbytes, mlx_affine, mxfp4

if TYPE_CHECKING:
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.llamacpp.toolchain import Toolchain

KINDS = {"MLX": mlx_affine, "bitsandbytes": bitsandbytes, "MXFP4": mxfp4, "AWQ": awq}
NOTES = {"MXFP4": mxfp4.NOTE}
SETTINGS = ("quantization", "quantization_config")
"""The keys of config.json that say how a model is quantized: mlx-lm's and transformers'."""


def quantization_of(config: Mapping[str, object]) -> str:
    """The key in KINDS of the quantization that a config names, "" if there is none."""
    return next((name for name, kind in KINDS.items() if kind.is_quantized(config)), "")


def plain_tensors(
    tensors: dict[str, Tensor], config: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, object], str]:
    """The plain tensors (…, n_out, n_in), their config, and the kind; reads no weight.

    Raises CheckpointError for parts that do not fit together, UnsupportedError for an unknown
    form of a kind.
    """
    mlx_affine.refuse_changed(tensors, config)
    kind = quantization_of(config)
    if not kind:
        return tensors, config, kind
    plain = {key: value for key, value in config.items() if key not in SETTINGS}
    return KINDS[kind].dequantized(tensors, config), plain, kind


def dequantized(
    checkpoint: Checkpoint, toolchain: Toolchain | None, *, report: Report = silent
) -> Checkpoint:
    """Replace the weights that only llama.cpp's converter can dequantize; reads no weight.

    toolchain: its build; None leaves such weights quantized. Raises CheckpointError for parts
    that do not fit together, UnsupportedError for an unknown kind.
    """
    from exporter.inputs.quantized.via_llamacpp import dequantized_by_llamacpp

    if note := NOTES.get(checkpoint.quantized_as):
        report(Note(note))
    return dequantized_by_llamacpp(checkpoint, toolchain) if toolchain else checkpoint
