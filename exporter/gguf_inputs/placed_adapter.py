"""Adapters of formats other than PEFT's, moved onto the base for the merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.core.events import Report, silent
from exporter.gguf_inputs.gguf_adapter_names import named_on_hub
from exporter.gguf_inputs.gguf_base import ARCHITECTURE
from exporter.gguf_inputs.gguf_base_names import named_in_gguf
from exporter.inputs import mlx_adapter
from exporter.llamacpp.toolchain import find_toolchain

if TYPE_CHECKING:
    from exporter.inputs.adapter_spec import AdapterSpec
    from exporter.inputs.checkpoint import Checkpoint
    from exporter.llamacpp.toolchain import Toolchain


def on_base(
    adapter: AdapterSpec,
    checkpoint: Checkpoint,
    toolchain: Toolchain | None,
    *,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> AdapterSpec:
    """The adapter with modules that match the base; PEFT's stay unchanged.

    Raises UnsupportedError for a base that the other tool trains in another form, AdapterError for
    one that a GGUF adapter does not fit.
    """
    if ARCHITECTURE in checkpoint.config:
        return named_in_gguf(adapter, checkpoint, toolchain or find_toolchain())
    if adapter.origin == "mlx":
        mlx_adapter.check_base(adapter, checkpoint)
    if adapter.origin != "gguf":
        return adapter
    return named_on_hub(
        adapter,
        checkpoint,
        toolchain or find_toolchain(),
        trust_remote_code=trust_remote_code,
        report=report,
    )
