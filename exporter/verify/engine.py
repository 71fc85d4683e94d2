"""A GGUF's logits, in this process, by the build's own llama.cpp."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError, ModelError
from exporter.core.machine import cores
from exporter.vocabulary import load_bindings

if TYPE_CHECKING:
    import numpy as np

    from exporter.toolchain import Toolchain

F32 = 0  # ggml's number: the cache is kept exact, so that what differs is the file
FLASH_OFF = 0  # llama_flash_attn_type


def gguf_logits(
    path: Path, chunks: Sequence[Sequence[int]], toolchain: Toolchain
) -> Iterator[np.ndarray[Any, Any]]:
    """The logits after every token of each chunk, (tokens, vocabulary) in float32.

    Each chunk begins anew. Raises ModelError for a file that llama.cpp cannot load, EngineError
    when it cannot compute.
    """
    import numpy as np

    bindings = load_bindings(toolchain)
    bindings.llama_backend_init()
    model = bindings.llama_model_load_from_file(
        os.fsencode(path), bindings.llama_model_default_params()
    )
    if not model:
        raise ModelError(
            f"llama.cpp cannot load `{path}`", hint="`decant inspect` shows what it holds"
        )
    context = None
    try:
        longest = max(map(len, chunks))
        settings = bindings.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = cores()
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = FLASH_OFF
        context = bindings.llama_init_from_model(model, settings)
        if not context:
            raise EngineError(
                f"llama.cpp cannot run `{path}` on {longest} tokens", hint="is memory left?"
            )
        width = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(model))
        for chunk in chunks:
            decode(bindings, context, chunk, path)
            found = bindings.llama_get_logits(context)
            pointer = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
            yield np.ctypeslib.as_array(pointer, shape=(len(chunk), width)).copy()
    finally:
        if context:
            bindings.llama_free(context)
        bindings.llama_model_free(model)


def decode(bindings: Any, context: Any, chunk: Sequence[int], path: Path) -> None:
    """Run one chunk from the beginning, with logits for all its tokens."""
    bindings.llama_memory_clear(bindings.llama_get_memory(context), True)
    batch = bindings.llama_batch_init(len(chunk), 0, 1)
    try:
        batch.n_tokens = len(chunk)
        for position, token in enumerate(chunk):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        status = bindings.llama_decode(context, batch)
    finally:
        bindings.llama_batch_free(batch)
    if status:
        raise EngineError(
            f"llama.cpp ended with {status} on {len(chunk)} tokens of `{path}`",
            hint="is the file whole? `decant verify --light` looks at its tensors",
        )
