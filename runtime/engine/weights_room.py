"""The bytes that a model's weights may take, beside its context, so that it runs on a machine."""

from __future__ import annotations

from exporter.core.gguf import GGUFFile
from exporter.core.machine import available_nbytes
from exporter.llamacpp.gpus import free_nbytes
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.memory_fit import DEFAULT_CONTEXT, GPU_MARGIN, MARGIN
from runtime.engine.memory_need import reckon


def weights_room(model: GGUFFile, *, nbytes: int | None, context: int | None) -> int:
    """The bytes for the tensors' data; less than 0 where the context alone is too large.

    model: only its settings and its tensors' shapes matter. nbytes: the free memory of another
    machine; None for this machine's, or its GPU's if llama.cpp is built for one. context: tokens;
    None for as many as `decant chat` gives.
    """
    trained = model.number(f"{model.architecture}.context_length") or DEFAULT_CONTEXT
    tokens = min(context or DEFAULT_CONTEXT, trained)
    need = reckon(model, tokens, "f16", 0)
    return usable_nbytes(nbytes) - (need.total - need.weights)


def usable_nbytes(nbytes: int | None) -> int:
    """The bytes that a model may take of another machine's free memory, or of this machine's."""
    if nbytes is None and (gpu := free_nbytes(find_toolchain())) is not None:
        return gpu - GPU_MARGIN
    return int(MARGIN * (available_nbytes() if nbytes is None else nbytes))
