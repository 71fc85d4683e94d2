"""The command line of the scoring engine's process."""

from __future__ import annotations

from runtime.engine.llama_server import ServerSpec
from runtime.engine.memory_fit import Fit
from runtime.engine.opened_model import Model


def score_spec(model: Model, fitted: Fit, parallel: int = 1) -> ServerSpec:
    """The scoring engine's process; if memory is short, its sums are less exact.

    parallel: the requests that its server may get at once.
    """
    flash = () if fitted.is_exact else ("--flash",)
    layers = () if fitted.gpu_layers is None else ("--gpu-layers", str(fitted.gpu_layers))
    return ServerSpec(
        model.header.path,
        fitted.context,
        fitted.threads,
        parallel,
        tuple(adapter.path for adapter in model.adapters),
        engine="scoring",
        extra=("--cache-type", fitted.cache_type, *flash, *layers),
    )
