"""The one entry to bases that are stored quantized, once the checkpoint is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.core.events import Report, silent
from exporter.inputs.quantized import awq, mxfp4
from exporter.inputs.quantized.via_llamacpp import dequantized_by_llamacpp

if TYPE_CHECKING:
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.llamacpp.toolchain import Toolchain


def dequantized(
    checkpoint: Checkpoint, toolchain: Toolchain | None, *, report: Report = silent
) -> Checkpoint:
    """Replace quantized weights by plain ones; reads no weight.

    toolchain: dequantizes what only llama.cpp's converter can; None leaves such weights quantized.
    Raises CheckpointError for parts that do not fit together, UnsupportedError for an unknown kind.
    """
    checkpoint = awq.dequantized(mxfp4.dequantized(checkpoint, report=report))
    return dequantized_by_llamacpp(checkpoint, toolchain) if toolchain else checkpoint
