"""The memory that an engine may take beyond its plan, and what it keeps of earlier prompts.

Some models' state cannot be cut back (sliding windows, recurrent layers): llama-server copies it at
some places of each prompt, and later prompts continue from a copy. Upstream's 32 copies for each
slot may be larger than the model, so their number follows from the memory that is left.
"""

from __future__ import annotations

from exporter.core.gguf import GGUFFile
from runtime.engine.memory_fit import Fit
from runtime.engine.memory_need import BATCH, CACHE_BYTES, cache_values, layer_count, score_nbytes
from runtime.process.memory_watch import MemoryLimit

SLACK = 1 << 30  # bytes: tables of a vocabulary, grammars, bodies, the allocator's holes
MEDIA_SLACK = 2 << 30  # bytes of decoded pictures and recordings
COPIES_MAX = 32  # llama-server's --ctx-checkpoints by default
STATE_BYTES = 4  # recurrent states are float32


def has_uncut_state(model: GGUFFile) -> bool:
    """Whether a model's state cannot be cut back: it has a sliding window or recurrent layers."""
    name = model.architecture
    keys = ("attention.sliding_window", "ssm.inner_size", "wkv.head_size")
    return any(model.number(f"{name}.{key}") for key in keys)


def copy_nbytes(model: GGUFFile, fit: Fit) -> int:
    """The bytes of one copy of a slot's state; 0 for a model whose state can be cut back."""
    name = model.architecture
    window = model.number(f"{name}.attention.sliding_window") or 0
    cells = min(fit.context, window + BATCH) if window else 0
    inner = model.number(f"{name}.ssm.inner_size") or 0
    width = model.number(f"{name}.embedding_length") or 0
    state = inner * (model.number(f"{name}.ssm.state_size") or 0)
    state += width * (model.number(f"{name}.wkv.head_size") or 0)
    recurrent = layer_count(model) * state * STATE_BYTES
    return int(cache_values(model, cells) * CACHE_BYTES[fit.cache_type]) + recurrent


def copies(model: GGUFFile, fit: Fit, parallel: int) -> int | None:
    """How many copies each slot may keep, 1 or more; None where llama-server makes none."""
    nbytes = copy_nbytes(model, fit)
    if not nbytes:
        return None
    return max(1, min(COPIES_MAX, fit.prompt_cache // (nbytes * parallel)))


def memory_limit(model: GGUFFile, fit: Fit, parallel: int, *, sees: bool = False) -> MemoryLimit:
    """The memory that an engine may take, beside mapped weights.

    parallel: its slots; sees: whether it decodes pictures or recordings. Activations may take
    three times the estimate. Attention scores count, too: only flash attention stores none.
    """
    need = fit.need
    kept = (copies(model, fit, parallel) or 0) * copy_nbytes(model, fit) * parallel
    scores = score_nbytes(model, fit.context * parallel, fit.batch)
    growth = need.cache + 3 * need.work + scores + fit.prompt_cache + kept + SLACK
    growth += MEDIA_SLACK if sees else 0
    return MemoryLimit(need.weights + growth, growth)
