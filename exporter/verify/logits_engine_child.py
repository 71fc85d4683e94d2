"""The child of logits_engine.py: the build's llama.cpp over one GGUF, with requests as JSON lines.

If llama.cpp aborts, it ends this process only. Answers go to standard output, llama.cpp's error
messages to standard error.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exporter.core.errors import DecantError, EngineError, ModelError
from exporter.llamacpp.toolchain import Toolchain
from exporter.llamacpp.vocabulary import Vocabulary, load_bindings
from exporter.verify.projector_child import Projector

PROBE = "The quick brown fox jumps over the lazy dog."
PROBE_CONTEXT = 64  # tokens
PROBE_TOKENS = 8  # computed by a probe
F32 = 0  # ggml's type number; with an exact cache, only the file causes differences
FLASH_OFF = 0  # llama_flash_attn_type
ERROR, CONTINUED = 4, 5  # ggml_log_level
NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE
NO_POOLING = 0  # LLAMA_POOLING_TYPE_NONE
SECONDS = 2.0  # length of a test sound
RANK = 4  # LLAMA_POOLING_TYPE_RANK


class LoadedModel:
    """One GGUF, loaded on the CPU only."""

    def __init__(self, folder: Path, library: Path, threads: int) -> None:
        build = SimpleNamespace(dir=folder, library=lambda _: library)
        self.lib = load_bindings(Toolchain(build))
        self.libraries = library.parent
        self.threads = threads
        self.model: Any = None
        self.context: Any = None
        self.length = 0  # tokens of the context
        self.log = self.lib.llama_log_callback(Log())
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.lib, self.lib.llama_model_get_vocab(self.model))

    def load(self, path: str, vocab_only: bool) -> dict[str, Any]:
        """Load a file. Raises ModelError if llama.cpp cannot."""
        settings = self.lib.llama_model_default_params()
        settings.vocab_only = vocab_only
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = False  # repacking would copy the weights
        no_device = (ctypes.c_void_p * 1)(None)
        settings.devices = ctypes.addressof(no_device)
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load `{path}`")
        return {"size": self.vocabulary.size}

    def encode(self, texts: list[str], special: bool, parse: bool) -> list[list[int]]:
        vocabulary = self.vocabulary
        return [vocabulary.encode(text, special=special, parse=parse) for text in texts]

    def facts(self) -> dict[str, Any]:
        """Special tokens and end tokens of the vocabulary."""
        vocabulary = self.vocabulary
        names = ("bos", "eos", "eot", "sep", "pad", "mask")
        ends = [
            token
            for token in range(vocabulary.size)
            if self.lib.llama_vocab_is_eog(vocabulary.handle, token)
        ]
        special = {name: vocabulary.special(name) for name in names}
        texts = {name: vocabulary.text(token) for name, token in special.items()}
        return {"special": special, "texts": texts, "ends": ends}

    def probe(self, embeds: bool) -> dict[str, Any]:
        """Compute a few tokens; returns their number and whether all outputs are finite.

        embeds: whether the model outputs embeddings or a ranking instead of logits.
        """
        ids = self.probe_tokens()
        has_decoder = self.lib.llama_model_has_decoder(self.model)
        self.open(PROBE_CONTEXT, embeddings=embeds)
        if embeds:
            run = self.lib.llama_decode if has_decoder else self.lib.llama_encode
            self.run(run, ids)
            return tally(len(ids), [self.embedding(len(ids))])
        if self.lib.llama_model_has_encoder(self.model):
            self.run(self.lib.llama_encode, ids)
            start = self.lib.llama_model_decoder_start_token(self.model)
            self.run(self.lib.llama_decode, [max(start, 0)])
            return tally(len(ids) + 1, [self.logits_row()])
        self.run(self.lib.llama_decode, ids)
        rows = [self.logits_row()]
        if self.lib.llama_get_memory(self.context):  # a single token takes other code paths
            self.run(self.lib.llama_decode, ids[-1:])
            rows.append(self.logits_row())
        return tally(len(ids) + len(rows) - 1, rows)

    def probe_tokens(self) -> list[int]:
        vocabulary = self.vocabulary
        ids: list[int] = []
        if self.lib.llama_vocab_type(vocabulary.handle) != NO_VOCABULARY:
            ids = vocabulary.encode(PROBE, special=True)[:PROBE_TOKENS]
        return ids or list(range(min(PROBE_TOKENS, vocabulary.size)))

    def embedding(self, count: int) -> Any:
        """The pooled embedding, a ranking's scores, or the last token's embedding, (width,).

        Raises EngineError without one.
        """
        lib, kind = self.lib, self.lib.llama_pooling_type(self.context)
        if kind == NO_POOLING:
            found, width = lib.llama_get_embeddings_ith(self.context, count - 1), None
        else:
            found = lib.llama_get_embeddings_seq(self.context, 0)
            width = lib.llama_model_n_cls_out(self.model) if kind == RANK else None
        if not found:
            raise EngineError("llama.cpp gives no embedding")
        return floats(found, width or lib.llama_model_n_embd_out(self.model))

    def logits_row(self) -> Any:
        """The logits of the last token, (vocabulary,). Raises EngineError without them."""
        found = self.lib.llama_get_logits_ith(self.context, -1)
        if not found:
            raise EngineError("llama.cpp gives no logits")
        return floats(found, self.vocabulary.size)

    def open(self, length: int, *, embeddings: bool = False, exact: bool = False) -> None:
        """Open a context of `length` tokens. Raises EngineError if llama.cpp cannot."""
        if self.context:
            self.lib.llama_free(self.context)
        settings = self.lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.embeddings = embeddings
        if exact:
            settings.type_k = settings.type_v = F32
            settings.flash_attn_type = FLASH_OFF
        self.context = self.lib.llama_init_from_model(self.model, settings)
        self.length = length
        if not self.context:
            raise EngineError(f"llama.cpp cannot run it on {length} tokens")

    def run(self, step: Any, ids: list[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        self.finish(step(self.context, self.lib.llama_batch_get_one(tokens, len(ids))), len(ids))

    def finish(self, status: int, count: int) -> None:
        """Raise EngineError for a failed step."""
        if status:
            raise EngineError(f"llama.cpp ended with {status} on {count} tokens")

    def logits(self, chunk: list[int], path: str, length: int) -> dict[str, int]:
        """Write the logits after every token of a chunk to a file, (tokens, vocabulary) in
        float32.
        """
        if length > self.length:
            self.open(length, exact=True)
        lib = self.lib
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        batch = lib.llama_batch_init(len(chunk), 0, 1)
        try:
            batch.n_tokens = len(chunk)
            for position, token in enumerate(chunk):
                batch.token[position] = token
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = 1
            self.finish(lib.llama_decode(self.context, batch), len(chunk))
        finally:
            lib.llama_batch_free(batch)
        width = self.vocabulary.size
        Path(path).write_bytes(floats(lib.llama_get_logits(self.context), len(chunk) * width))
        return {"rows": len(chunk), "width": width}

    def project(
        self, path: str, picture: str, size: tuple[int, int], written: str, most: int | None
    ) -> dict[str, Any]:
        """Encode a picture with a projector; a tone if the projector takes only sound.

        picture: a file with its pixels; size: width and height; written: file for the embeddings,
        (tokens, width) in float32; most: number of parts of the picture to encode. Raises
        ModelError if llama.cpp cannot load the projector beside the model.
        """
        projector = Projector(path, self.model, self.libraries, self.log)
        bitmap = (
            projector.picture(Path(picture).read_bytes(), *size)
            if projector.sees
            else projector.tone(SECONDS)
        )
        parts = projector.encode(bitmap, most)
        Path(written).write_bytes(b"".join(map(bytes, parts)))
        tokens = sum(map(len, parts)) // projector.width
        return {"sees": projector.sees, "width": projector.width} | tally(tokens, parts)


class Log:
    """Writes llama.cpp's error messages to standard error."""

    def __init__(self) -> None:
        self.level = 0

    def __call__(self, level: int, text: bytes, data: object) -> None:
        del data
        self.level = self.level if level == CONTINUED else level
        if self.level == ERROR:
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()


def floats(pointer: Any, count: int) -> Any:
    """A ctypes array (count,) over llama.cpp's memory."""
    return (ctypes.c_float * count).from_address(ctypes.cast(pointer, ctypes.c_void_p).value or 0)


def tally(tokens: int, rows: list[Any]) -> dict[str, Any]:
    return {"tokens": tokens, "finite": all(all(map(math.isfinite, row)) for row in rows)}


def listen(requests: list[bytes], news: threading.Condition) -> None:
    """Collect requests; end the process at once when the parent is gone."""
    begun = b""
    while block := os.read(0, 1 << 16):
        *lines, begun = (begun + block).split(b"\n")
        with news:
            requests += lines
            news.notify()
    os._exit(0)


def main() -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # no other output may be mistaken for an answer
    requests: list[bytes] = []
    news = threading.Condition()
    threading.Thread(target=listen, args=(requests, news), daemon=True).start()
    model = LoadedModel(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    while True:
        with news:
            news.wait_for(lambda: requests)
            question = json.loads(requests.pop(0))
        try:
            answer = {"answer": getattr(model, question["verb"])(**question["with"])}
        except DecantError as error:
            answer = {"error": error.message}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
