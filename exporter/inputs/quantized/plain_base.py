"""The one door to bases that are stored quantized.

A kind is a module with `is_quantized(config)` and `dequantized(tensors, config)`; a new one is
such a file and a line in KINDS. What none of them knows is left to llama.cpp's converter.
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


def kind_of(config: Mapping[str, object]) -> str:
    """The key in KINDS of the quantization that a config names, "" if there is none."""
    return next((name for name, kind in KINDS.items() if kind.is_quantized(config)), "")


def plain_tensors(
    tensors: dict[str, Tensor], config: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, object], str]:
    """The tensors and the config of the plain model, and the kind; no weight is read.

    Raises CheckpointError for parts that do not fit each other, UnsupportedError for a form of
    the kind that is not read here.
    """
    mlx_affine.refuse_changed(tensors, config)
    kind = kind_of(config)
    if not kind:
        return tensors, config, kind
    plain = {key: value for key, value in config.items() if key not in SETTINGS}
    return KINDS[kind].dequantized(tensors, config), plain, kind


def dequantized(
    checkpoint: Checkpoint, toolchain: Toolchain | None, *, report: Report = silent
) -> Checkpoint:
    """The checkpoint with plain weights also where only llama.cpp's converter knows the kind.

    toolchain: does that dequantizing; None leaves such a base as it is. Raises CheckpointError
    for parts that do not fit each other, UnsupportedError for a kind that nothing here knows.
    """
    from exporter.inputs.quantized.via_llamacpp import dequantized_by_llamacpp

    if note := NOTES.get(checkpoint.quantized_as):
        report(Note(note))
    return dequantized_by_llamacpp(checkpoint, toolchain) if toolchain else checkpoint
