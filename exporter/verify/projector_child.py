"""A projector in the child of logits_engine.py: the build's libmtmd beside a loaded model."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any

from exporter.core.errors import EngineError, ModelError

LIBRARY = "MTMD_CPP_LIB"  # the folder in which the bindings look for it
TEXT = 0  # MTMD_INPUT_CHUNK_TYPE_TEXT
FLASH_OFF = 0  # llama_flash_attn_type: flash attention sums in 16 bits
PITCH, LOUDNESS = 440.0, 0.3  # of the test tone, in Hz and relative to full scale


class Projector:
    """Turns pictures or sounds into embeddings for a model."""

    def __init__(self, path: str, model: Any, folder: Path, log: Any) -> None:
        """Load the projector on the CPU only. Raises ModelError if llama.cpp cannot.

        model: a llama_model *, loaded whole; folder: of the build's libraries; log: the callback.
        """
        os.environ[LIBRARY] = str(folder)
        import llama_cpp.mtmd_cpp

        self.lib = lib = llama_cpp.mtmd_cpp
        lib.mtmd_log_set(log, None)
        settings = lib.mtmd_context_params_default()
        settings.use_gpu = settings.warmup = settings.print_timings = False
        settings.flash_attn_type = FLASH_OFF
        self.width = llama_cpp.llama_model_n_embd_inp(model)
        self.context = lib.mtmd_init_from_file(os.fsencode(path), model, settings)
        if not self.context:
            raise ModelError(f"llama.cpp cannot load `{path}` beside the model")

    @property
    def sees(self) -> bool:
        return bool(self.lib.mtmd_support_vision(self.context))

    def picture(self, pixels: bytes, width: int, height: int) -> Any:
        """A mtmd_bitmap * of pixels: red, green and blue of each, row by row."""
        values = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        return self.lib.mtmd_bitmap_init(width, height, values)

    def tone(self, seconds: float) -> Any:
        """A mtmd_bitmap * of a generated sound."""
        rate = self.lib.mtmd_get_audio_sample_rate(self.context)
        turn, count = 2 * math.pi * PITCH / rate, int(rate * seconds)
        values = (ctypes.c_float * count)(*(LOUDNESS * math.sin(turn * i) for i in range(count)))
        return self.lib.mtmd_bitmap_init_from_audio(count, values)

    def encode(self, bitmap: Any, most: int | None) -> list[Any]:
        """Embeddings of a bitmap: for each part an array of (tokens, width) floats.

        most: number of parts to encode; None for all. Raises EngineError if llama.cpp cannot.
        """
        lib, chunks = self.lib, self.lib.mtmd_input_chunks_init()
        marker = lib.mtmd_default_marker()
        text = lib.mtmd_input_text(marker, len(marker), False, True)
        given = (ctypes.c_void_p * 1)(bitmap)
        status = lib.mtmd_tokenize(self.context, chunks, ctypes.byref(text), given, 1)
        if status:
            raise EngineError(f"llama.cpp cannot take a picture or a sound with it ({status})")
        parts = [
            chunk
            for at in range(lib.mtmd_input_chunks_size(chunks))
            if lib.mtmd_input_chunk_get_type(chunk := lib.mtmd_input_chunks_get(chunks, at)) != TEXT
        ]
        return [self.embed(chunk) for chunk in parts[:most]]

    def embed(self, chunk: Any) -> Any:
        """The embeddings of one part, (tokens, width), copied. Raises EngineError if it fails."""
        status = self.lib.mtmd_encode_chunk(self.context, chunk)
        found = self.lib.mtmd_get_output_embd(self.context)
        count = self.lib.mtmd_input_chunk_get_n_tokens(chunk)
        if status or not found or not count:
            raise EngineError(f"llama.cpp ended with {status} on a picture or a sound")
        floats = (ctypes.c_float * (count * self.width)).from_address(
            ctypes.cast(found, ctypes.c_void_p).value or 0
        )
        return type(floats).from_buffer_copy(floats)
