"""Logits of a GGUF, with or without an adapter, from the built llama.cpp in this process."""

from __future__ import annotations

import os
import sys
from ctypes import c_float
from pathlib import Path
from typing import Any

import numpy as np

from exporter.llamacpp.toolchain import Toolchain


class Loaded:
    """A model whose vocabulary is not used: tokens are given as ids."""

    def __init__(self, toolchain: Toolchain, model: Path) -> None:
        """Load the whole model into memory, on the CPU."""
        os.environ["LLAMA_CPP_LIB_PATH"] = str(toolchain.folder / "bin")
        if str(toolchain.folder / "python") not in sys.path:
            sys.path.append(str(toolchain.folder / "python"))
        import llama_cpp

        self.llama = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers, settings.use_mmap = 0, False
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), settings)
        assert self.model, model

    def adapter(self, path: Path) -> Any:
        """An adapter for this model; None if llama.cpp refuses it."""
        return self.llama.llama_adapter_lora_init(self.model, str(path).encode())

    def logits(
        self, tokens: list[int], *, adapter: Any = None, scale: float = 1.0, encoder: bool = False
    ) -> np.ndarray[Any, Any]:
        """Logits (tokens, vocabulary); with `encoder`, those of token 0 after the input: (1, …)."""
        lib = self.llama
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # float32
        settings.flash_attn_type = 0
        context = lib.llama_init_from_model(self.model, settings)
        assert context
        if adapter:
            adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(adapter), (c_float * 1)(scale)
            assert lib.llama_set_adapters_lora(context, adapters, 1, scales) == 0
        if encoder:
            assert lib.llama_encode(context, self.batch(tokens)) == 0
            tokens = [0]
        assert lib.llama_decode(context, self.batch(tokens)) == 0
        width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        rows = [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(context, place), (width,)).copy()
            for place in range(len(tokens))
        ]
        lib.llama_free(context)
        return np.stack(rows)

    def batch(self, tokens: list[int]) -> Any:
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
        return batch

    def close(self) -> None:
        self.llama.llama_model_free(self.model)
