"""The memory that a model needs, estimated from its header, before anything is loaded.

The sizes follow llama.cpp's for a CPU (llama-kv-cache.cpp, ggml's graph allocator); the tests
compare them with the allocations that a llama-server logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.core.gguf import Array, GGUFFile
from exporter.core.paths import size_text

BATCH = 512  # tokens computed at once: llama.cpp's default --ubatch-size
CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "q8_0": 34 / 32,
}  # per value; q8_0 has 32 values and a scale in 34
Q8_BLOCK = 32  # values
LAYERS_KEPT = 1024  # items kept of a header's per-layer settings; no model has more layers
CACHELESS = frozenset(
    ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert",
     "neo-bert", "eurobert", "gemma-embedding")
)  # fmt: skip
"""Encoder architectures: they read a text once, without a cache of keys and values or logits."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of memory, by what takes them."""

    weights: int
    cache: int
    """Keys and values of the whole context."""
    work: int
    """Activations, and the logits."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work

    def __add__(self, other: Need) -> Need:
        cache, work = self.cache + other.cache, self.work + other.work
        return Need(self.weights + other.weights, cache, work)

    def __str__(self) -> str:
        """The sizes as text for people."""
        return (
            f"{size_text(self.total)} ({size_text(self.weights)} weights,"
            f" {size_text(self.cache)} context, {size_text(self.work)} work)"
        )


def reckon(
    model: GGUFFile,
    context: int,
    cache_type: str,
    extra: int,
    batch: int = BATCH,
    draft: GGUFFile | None = None,
) -> Need:
    """The memory for `context` tokens; extra: bytes of files beside the model.

    batch: the tokens computed at once; draft: a model that guesses them.
    """
    weights = sum(tensor.nbytes for tensor in model.tensors) + extra
    cache = int(cache_values(model, context) * CACHE_BYTES[cache_type])
    need = Need(weights, cache, work_nbytes(model, context, batch))
    return need + reckon(draft, context, "f16", 0, batch) if draft else need


def cache_values(model: GGUFFile, context: int) -> int:
    """The number of key and value elements of `context` tokens, over all layers."""
    if model.architecture in CACHELESS:
        return 0
    layers, heads = layer_count(model), per_layer(model, "attention.head_count")
    groups = per_layer(model, "attention.head_count_kv", heads)
    pairs = zip(groups[:layers], heads[:layers], strict=True)
    return context * sum(group * sum(head_widths(model, head)) for group, head in pairs)


def head_widths(model: GGUFFile, heads: int) -> tuple[int, int]:
    """The widths of a head's key and value, in a layer of `heads` heads."""
    name = model.architecture
    width = (model.number(f"{name}.embedding_length") or 0) // heads if heads else 0
    keys = model.number(f"{name}.attention.key_length") or width
    return keys, model.number(f"{name}.attention.value_length") or width


def layer_count(model: GGUFFile) -> int:
    name = model.architecture
    return model.number(f"{name}.decoder_block_count") or model.number(f"{name}.block_count") or 0


def per_layer(model: GGUFFile, key: str, default: list[int] | None = None) -> list[int]:
    """A setting per layer; the header gives one number for all layers, or a list."""
    value = model.metadata.get(f"{model.architecture}.{key}")
    layers = layer_count(model)
    if isinstance(value, Array):
        numbers = [item for item in value.items if isinstance(item, int)]
        return (numbers + [0] * layers)[:layers]
    if isinstance(value, int):
        return [value] * layers
    return default if default is not None else [0] * layers


def work_nbytes(model: GGUFFile, context: int, batch: int = BATCH) -> int:
    """Estimate the graph allocator's bytes: the widest activations of a batch, in float32."""
    name = model.architecture
    width = model.number(f"{name}.embedding_length") or 0
    inner = max(per_layer(model, "feed_forward_length"), default=0)
    vocabulary = next((t.shape[0] for t in model.tensors if t.name == "token_embd.weight"), 0)
    if name in CACHELESS:
        vocabulary, context = 0, batch
    batch = min(batch, context)
    return batch * 4 * max(vocabulary + width, 2 * inner + 4 * width) + context * batch * 2


def score_nbytes(model: GGUFFile, context: int, batch: int) -> int:
    """Bytes of a batch's attention scores, in float32; flash attention stores none."""
    seen = batch if model.architecture in CACHELESS else context
    return max(per_layer(model, "attention.head_count"), default=0) * batch * seen * 4


def cache_may_be_quantized(model: GGUFFile) -> bool:
    """Whether every head's keys and values fill whole blocks of Q8_0."""
    keys, values = head_widths(model, max(per_layer(model, "attention.head_count"), default=0))
    return bool(keys and values) and keys % Q8_BLOCK == 0 == values % Q8_BLOCK
