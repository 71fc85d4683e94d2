"""Runs a causal model in this process with the build's llama.cpp, to score given texts.

Every call begins with an empty cache, so that its result depends on no earlier call.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError, ModelError, UnsupportedError
from runtime.encoder_decoder.model import FLASH_OFF, Flag, complaints
from runtime.scoring.decode_step import Batch, Level
from runtime.scoring.log_softmax import Reduced, reduced
from runtime.scoring.prefix_tree import Node, forest, levels, packs, tokens_of
from runtime.scoring.scores import Scores, ScoringTask, as_array, empty_scores

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain
    from exporter.llamacpp.vocabulary import Vocabulary

F32, F16, FLASH_AUTO = 0, 1, -1  # ggml_type, llama_flash_attn_type
BATCH = 256  # tokens of one step; a larger one computes more attention that is masked
LOGITS_NBYTES = 256 << 20  # bytes of one step's logits
SEQUENCES, STATES = 64, 4  # sequences at once; fewer with recurrent states, which are larger
LEAST_CELLS = 512  # tokens of the first cache; it grows by doubling
PADDING = 256  # llama.cpp rounds a context up to it


class StoppedError(Exception):
    """The caller's flag stopped the computation."""


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """Which model to load, and how."""

    model: Path
    adapters: tuple[Path, ...] = ()
    """GGUF adapters; each call gives their scales."""
    context: int = 0
    """Tokens of the longest text; 0 takes what the model was trained with."""
    threads: int = 1
    gpu_layers: int = -1
    """Layers on a GPU, where llama.cpp was built for one; -1 for all."""
    cache_type: int = F32
    """ggml's number of the type of keys and values: F32 is exact."""
    flash_attention: int = FLASH_OFF


@dataclass
class Forward:
    """A loaded model, for one thread at a time."""

    spec: ForwardSpec
    bindings: Any  # llama_cpp
    model: Any  # llama_model *
    vocabulary: Vocabulary
    adapters: tuple[Any, ...]  # llama_adapter_lora *
    n_ctx: int
    """Tokens of the longest text."""
    context: Any = None  # llama_context *
    cells: int = 0
    """Tokens that the context's cache holds."""
    steps: int = 0
    """How often the model was run, for tests."""
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        most = LOGITS_NBYTES // (4 * self.vocabulary.size)
        size = next((n for n in (BATCH, 128) if n <= most), 64)
        self.batch = Batch(self.bindings, size)

    @property
    def sequences(self) -> int:
        """How many texts may be in the cache at once."""
        lib = self.bindings
        is_recurrent = lib.llama_model_is_recurrent(self.model)
        return STATES if is_recurrent or lib.llama_model_is_hybrid(self.model) else SEQUENCES

    def scores(
        self, task: ScoringTask, scales: Sequence[float] = (), stop: Flag | None = None
    ) -> list[Scores]:
        """The scores of each text with the adapters at `scales`; without scales, the base's.

        Raises StoppedError once `stop` is set, EngineError when llama.cpp cannot compute.
        """
        task = replace(task, top=min(task.top, self.vocabulary.size))
        computed = task.computed
        found = [empty_scores(len(text), task.top) for text in task.texts]
        self.refuse_late_adapters(scales)
        stop = stop or Flag()
        lib = self.bindings
        for members in packs(
            computed, cells=self.n_ctx, most=self.sequences, batch=self.batch.size
        ):
            roots = forest(computed, members, cells=self.n_ctx, batch=self.batch.size)
            self.make_room(sum(map(tokens_of, roots)), scales)
            # strlen, called on the flag's text, is not 0 once it is set: no Python in the loop
            is_set = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
            lib.llama_set_abort_callback(self.context, is_set, stop.address)
            try:
                self.pack(task, members, roots, found, stop)
            finally:
                lib.llama_set_abort_callback(self.context, lib.ggml_abort_callback(), None)
        return found

    def pack(
        self,
        task: ScoringTask,
        members: Sequence[int],
        roots: Sequence[Node],
        found: Sequence[Scores],
        stop: Flag,
    ) -> None:
        """Compute some texts' trees, level by level."""
        lib = self.bindings
        memory = lib.llama_get_memory(self.context)
        lib.llama_memory_clear(memory, False)
        place = {number: sequence for sequence, number in enumerate(members)}
        for level in levels(roots):
            step = Level(task, level, place)
            step.take(self.run(step, stop), found)
            for node in level:
                for child in node.children:
                    here, there = place[node.members[0]], place[child.members[0]]
                    if here != there:
                        lib.llama_memory_seq_cp(memory, here, there, -1, -1)

    def run(self, step: Level, stop: Flag) -> Iterator[Reduced]:
        """Decode a level's tokens, batch after batch, and reduce the logits that are wanted."""
        import numpy as np

        size, begun = self.batch.size, 0
        for start in range(0, len(step.tokens), size):
            part = slice(start, start + size)
            self.decode(step, part, stop)
            count = int(step.wanted[part].sum())
            if not count:
                continue
            width = self.vocabulary.size
            logits = as_array(self.bindings.llama_get_logits(self.context), (count, width))
            first, last = np.searchsorted(step.wanted_rows, (begun, begun + count))
            rows, tokens = step.wanted_rows[first:last] - begun, step.wanted_tokens[first:last]
            if step.task.take is not None:
                step.task.take(logits)
            yield reduced(logits, rows, tokens, step.task.top)
            begun += count

    def decode(self, step: Level, part: slice, stop: Flag) -> None:
        """Run one batch. Raises EngineError, and StoppedError when `stop` is set."""
        self.batch.fill(step, part)
        status = self.bindings.llama_decode(self.context, self.batch.struct)
        self.steps += 1
        if stop.is_set:
            raise StoppedError
        if status:
            raise EngineError(
                f"llama.cpp ended with {status} on {self.batch.struct.n_tokens} tokens",
                hint="is memory left?",
            )

    def refuse_late_adapters(self, scales: Sequence[float]) -> None:
        """Raise UnsupportedError for adapters that act on a part of a text only."""
        for adapter, scale in zip(self.adapters, scales, strict=False):
            if scale and self.bindings.llama_adapter_get_alora_n_invocation_tokens(adapter):
                raise UnsupportedError(
                    "this adapter acts only after certain tokens (aLoRA): its log-likelihoods are"
                    " not computed here",
                    hint="transformers and peft compute them",
                )

    def make_room(self, cells: int, scales: Sequence[float]) -> None:
        """Make a context of at least `cells` tokens, with the adapters. Raises EngineError."""
        lib = self.bindings
        if cells > self.cells:
            self.close()
            grown = max(LEAST_CELLS, 1 << (cells - 1).bit_length())
            grown = min(grown, -(-self.n_ctx // PADDING) * PADDING)
            self.context = lib.llama_init_from_model(self.model, self.settings(grown))
            if not self.context:
                raise EngineError(
                    f"llama.cpp cannot run `{self.spec.model}` on {grown} tokens",
                    hint="is memory left? A smaller context takes less",
                )
            self.cells = grown
        used = [pair for pair in zip(self.adapters, scales, strict=False) if pair[1]]
        count = len(used)
        adapters = (lib.llama_adapter_lora_p_ctypes * count)(*(adapter for adapter, _ in used))
        values = (ctypes.c_float * count)(*(scale for _, scale in used))
        if lib.llama_set_adapters_lora(self.context, adapters, count, values):
            raise EngineError("llama.cpp does not apply the adapters", hint="export them again")

    def settings(self, cells: int) -> Any:
        """llama_context_params for a cache of `cells` tokens, which all texts share."""
        made = self.bindings.llama_context_default_params()
        made.n_ctx = cells
        made.n_batch = made.n_ubatch = self.batch.size
        made.n_seq_max = self.sequences
        made.kv_unified = made.swa_full = True
        made.n_threads = made.n_threads_batch = self.spec.threads
        made.type_k = made.type_v = self.spec.cache_type
        made.flash_attn_type = self.spec.flash_attention
        return made

    def close(self) -> None:
        if self.context:
            self.bindings.llama_free(self.context)
        self.context, self.cells = None, 0


@contextmanager
def open_forward(spec: ForwardSpec, toolchain: Toolchain) -> Iterator[Forward]:
    """Load a model and its adapters.

    Raises ModelError if llama.cpp cannot load one of them; its error messages go to standard error.
    """
    from exporter.llamacpp.vocabulary import Vocabulary, load_bindings

    lib = load_bindings(toolchain)
    lib.llama_backend_init()
    with ExitStack() as stack:
        with complaints(lib):
            settings = lib.llama_model_default_params()
            settings.n_gpu_layers = spec.gpu_layers
            model = lib.llama_model_load_from_file(os.fsencode(spec.model), settings)
            if not model:
                raise ModelError(
                    f"llama.cpp cannot load `{spec.model}`",
                    hint="`decant inspect` shows what it holds",
                )
            stack.callback(lib.llama_model_free, model)
            adapters = tuple(load_adapter(lib, model, path) for path in spec.adapters)
        length = spec.context or int(lib.llama_model_n_ctx_train(model))
        vocabulary = Vocabulary(lib, lib.llama_model_get_vocab(model))
        forward = Forward(spec, lib, model, vocabulary, adapters, length)
        stack.callback(forward.close)
        yield forward


def load_adapter(lib: Any, model: Any, path: Path) -> Any:
    """Load an adapter's file into llama.cpp. Raises ModelError."""
    found = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not found:
        raise ModelError(
            f"llama.cpp cannot load the adapter `{path}`",
            hint="is it of this model? `decant inspect` shows what it holds",
        )
    return found
