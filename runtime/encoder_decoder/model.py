"""Runs an encoder-decoder GGUF (T5, MT5, UMT5) in this process with the build's llama.cpp.

llama-server runs such a model's decoder alone, without input; here the encoder reads the input and
the decoder generates the answer from it.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.arrange import OUTPUT_SCALED
from exporter.core.errors import EngineError, ModelError, UnsupportedError
from exporter.core.gguf import GGUFFile, read_gguf

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.llamacpp.vocabulary import Vocabulary

ARCHITECTURE = "t5"  # the converter's name for T5, MT5 and UMT5; an encoder alone is t5encoder
F32 = 0  # ggml's number: T5's activations can exceed float16's range
FLASH_OFF = 0  # llama_flash_attn_type; it would round the encoder's output to float16
ERROR = 4  # ggml_log_level
ABORTED = 2  # llama_decode, when its abort callback returns true
NO_TOKEN = -1  # LLAMA_TOKEN_NULL
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: a different seed each time
PIECE_BYTES = 256  # first size of the buffer for a token's text; it grows when needed


def is_encoder_decoder(header: GGUFFile) -> bool:
    """Whether a GGUF needs this engine because llama-server cannot serve it."""
    return header.architecture == ARCHITECTURE and not header.is_adapter


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled; names and defaults are llama-server's."""

    temperature: float = 0.8
    """0 picks the most likely token."""
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = RANDOM_SEED
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


class Flag:
    """A stop request from any thread, which llama.cpp sees while it computes a token."""

    def __init__(self) -> None:
        self.text = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self.text[0] = b"!"

    @property
    def is_set(self) -> bool:
        return self.text.value != b""

    @property
    def address(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(ctypes.addressof(self.text))


@dataclass(frozen=True, slots=True)
class EncoderDecoder:
    """A loaded model; one thread at a time may generate, any may use the vocabulary."""

    header: GGUFFile
    bindings: Any  # llama_cpp
    model: Any  # llama_model *
    context: Any  # llama_context *
    vocabulary: Vocabulary
    n_ctx: int
    """Tokens: the maximum of the input and of the answer."""

    @property
    def start(self) -> int:
        """The token that the decoder begins with."""
        given = int(self.bindings.llama_model_decoder_start_token(self.model))
        candidates = (given, self.vocabulary.special("bos"), self.vocabulary.special("pad"))
        return next((token for token in candidates if token != NO_TOKEN), 0)

    @property
    def logit_scale(self) -> float:
        """The factor of the logits before softmax.

        If T5 shares its head with the embedding, it scales by d_model ** -0.5; llama.cpp omits
        that. decant's exports fold it into the last norm and record it in the metadata.
        """
        if self.header.metadata.get(OUTPUT_SCALED) is True:
            return 1.0
        if any(tensor.name == "output.weight" for tensor in self.header.tensors):
            return 1.0
        return 1 / math.sqrt(self.bindings.llama_model_n_embd(self.model))

    @property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return self.header.metadata.get("tokenizer.ggml.add_space_prefix", True) is True

    def is_end(self, token: int) -> bool:
        return bool(self.bindings.llama_vocab_is_eog(self.vocabulary.handle, token))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """A token's bytes, possibly a part of a character; special includes control tokens."""
        room = PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self.bindings.llama_token_to_piece(
                self.vocabulary.handle, token, buffer, room, 0, special
            )
            if count >= 0:
                return buffer.raw[:count]
            room = -count


@contextmanager
def open_encoder_decoder(
    path: Path, toolchain: Toolchain, *, context: int, threads: int
) -> Iterator[EncoderDecoder]:
    """Load a model for the block; a context of 0 tokens is the one it was trained with.

    Raises UnsupportedError for other kinds of models, ModelError and EngineError if llama.cpp
    cannot load or run it; llama.cpp's error messages go to standard error.
    """
    from exporter.llamacpp.vocabulary import Vocabulary, load_bindings

    header = read_gguf(path)
    if not is_encoder_decoder(header):
        raise UnsupportedError(
            f"`{path}` is not an encoder-decoder model but {header.architecture}",
            hint="llama-server serves it",
        )
    lib = load_bindings(toolchain)
    lib.llama_backend_init()
    model = running = None
    try:
        with complaints(lib):
            model = lib.llama_model_load_from_file(
                os.fsencode(path), lib.llama_model_default_params()
            )
            if not model:
                raise ModelError(
                    f"llama.cpp cannot load `{path}`", hint="`decant inspect` shows what it holds"
                )
            length = context or int(lib.llama_model_n_ctx_train(model))
            running = lib.llama_init_from_model(model, settings(lib, length, threads))
        if not running:
            raise EngineError(
                f"llama.cpp cannot run `{path}` on {length} tokens",
                hint="is memory left? A smaller context takes less",
            )
        vocabulary = Vocabulary(lib, lib.llama_model_get_vocab(model))
        yield EncoderDecoder(header, lib, model, running, vocabulary, length)
    finally:
        if running:
            lib.llama_free(running)
        if model:
            lib.llama_model_free(model)


def settings(lib: Any, length: int, threads: int) -> Any:
    """llama_context_params for inputs and answers of `length` tokens."""
    made = lib.llama_context_default_params()
    # the encoder takes its whole input at once
    made.n_ctx = made.n_batch = made.n_ubatch = length
    made.n_threads = made.n_threads_batch = threads
    made.type_k = made.type_v = F32
    made.flash_attn_type = FLASH_OFF
    return made


@contextmanager
def complaints(lib: Any) -> Iterator[None]:
    """Write llama.cpp's error messages to standard error during the block."""
    from exporter.llamacpp.vocabulary import SILENCE

    def complain(level: int, text: bytes, data: object) -> None:
        del data
        if level == ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    callback = lib.llama_log_callback(complain)
    lib.llama_log_set(callback, None)
    try:
        yield
    finally:
        lib.llama_log_set(ctypes.cast(SILENCE, lib.llama_log_callback), None)


def generate(
    model: EncoderDecoder, ids: Sequence[int], sampling: Sampling, stop: Flag
) -> Generator[int, None, None]:
    """Generate the answer's tokens, up to and including the end token, or to the context's end.

    It ends early if `stop` is set. Raises EngineError if llama.cpp cannot compute.
    """
    lib = model.bindings
    lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
    # strlen of the flag's text is nonzero once it is set: no Python runs in llama.cpp's loop
    is_set = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
    lib.llama_set_abort_callback(model.context, is_set, stop.address)
    chain = sampler_chain(model, sampling)
    try:
        if not computed(model, lib.llama_encode, ids, stop):
            return
        token = model.start
        for _ in range(model.n_ctx):
            if not computed(model, lib.llama_decode, (token,), stop):
                return
            token = int(lib.llama_sampler_sample(chain, model.context, -1))
            yield token
            if model.is_end(token):
                return
    finally:
        lib.llama_sampler_free(chain)
        lib.llama_set_abort_callback(model.context, lib.ggml_abort_callback(), None)


def computed(
    model: EncoderDecoder, step: Callable[[Any, Any], int], ids: Sequence[int], stop: Flag
) -> bool:
    """Run a step on some tokens; False if `stop` is set. Raises EngineError."""
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    status = step(model.context, model.bindings.llama_batch_get_one(tokens, len(ids)))
    if stop.is_set:
        return False
    if status:
        raise EngineError(
            f"llama.cpp ended with {status} on {len(ids)} tokens", hint="is memory left?"
        )
    return True


def sampler_chain(model: EncoderDecoder, sampling: Sampling) -> Any:
    """llama.cpp's samplers in llama-server's order."""
    lib = model.bindings
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    last = sampling.repeat_last_n
    last = model.n_ctx if last < 0 else min(last, model.n_ctx)
    samplers = [
        lib.llama_sampler_init_temp(1 / model.logit_scale),
        lib.llama_sampler_init_penalties(
            model.vocabulary.size, last, sampling.repeat_penalty, sampling.frequency_penalty,
            sampling.presence_penalty,
        ),
    ]  # fmt: skip
    if sampling.temperature <= 0:
        samplers.append(lib.llama_sampler_init_greedy())
    else:
        samplers += [
            lib.llama_sampler_init_top_k(sampling.top_k),
            lib.llama_sampler_init_top_p(sampling.top_p, 0),
            lib.llama_sampler_init_min_p(sampling.min_p, 0),
            lib.llama_sampler_init_temp(sampling.temperature),
            lib.llama_sampler_init_dist(sampling.seed),
        ]
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)
    return chain
