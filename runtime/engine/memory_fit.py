"""What a model needs of this machine, reckoned from its header before anything is loaded.

The sizes are llama.cpp's own for a CPU (llama-kv-cache.cpp, ggml's graph allocator); the tests
compare them with what a llama-server says it has allocated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.errors import SpaceError
from exporter.core.gguf import Array, GGUFFile
from exporter.core.paths import size_text
from runtime.rpc.protocol import ALL_LAYERS, Spread, WorkerFacts

DEFAULT_CONTEXT = 8192  # tokens; enough for a talk, and its cache fits a laptop
LEAST_CONTEXT = 512  # tokens; below this one question fills it
MARGIN = 0.9  # of what is free; the rest is for whatever else runs
GPU_MARGIN = 1 << 30  # bytes that llama.cpp leaves free on a GPU: its --fit-target
BATCH = 512  # tokens computed at once: llama.cpp's default --ubatch-size
CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "q8_0": 34 / 32,
}  # per value; q8_0 has 32 values and a scale in 34
Q8_BLOCK = 32  # values
PROMPT_CACHE_MAX = 1 << 30  # bytes of earlier prompts kept in memory
PROMPT_CACHE_SHARE = 0.25  # of what is left over
LAYERS_KEPT = 1024  # of per-layer settings; no model has more
BLOCK = re.compile(r"blk\.(\d+)\.")
CACHELESS = frozenset(
    ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert",
     "neo-bert", "eurobert", "gemma-embedding")
)  # fmt: skip
"""Architectures that read a text once: they have neither keys and values to keep nor logits."""
# bits per weight of whole models of some billions of weights, by llama-quantize's own table
BITS = {"Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q3_K_M": 4.0, "Q2_K": 3.35,
        "IQ2_XXS": 2.38}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of memory, by what takes them."""

    weights: int
    cache: int
    """Keys and values of the whole context."""
    work: int
    """Values between layers, and the logits."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work

    def __str__(self) -> str:
        """For people."""
        return (
            f"{size_text(self.total)} ({size_text(self.weights)} weights,"
            f" {size_text(self.cache)} context, {size_text(self.work)} work)"
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user, or the caller, has settled; None where it is open."""

    context: int | None = None
    threads: int | None = None
    parallel: int = 1
    force: bool = False
    """Load even what does not seem to fit."""
    rpc: Spread | None = None
    """Workers that compute layers, too; `spread_over` says how many."""
    whole_texts: bool = False
    """Whether a text must be computed in one batch, however long it is."""
    exact: bool = False
    """Whether attention is summed in 32 bits where memory allows: flash attention sums in 16, and
    a text's vector then depends on the texts computed beside it."""
    wide_cache: bool = False
    """Whether keys and values are kept in 32 bits where memory allows."""

    @property
    def best_type(self) -> str:
        return "f32" if self.wide_cache else "f16"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model is run on this machine."""

    context: int
    """Tokens, of each conversation."""
    trained: int
    """Tokens of context that the model was trained with; 0 where its header is silent."""
    threads: int
    cache_type: str
    """f16, or q8_0 where only that fits; f32 where that was asked for."""
    prompt_cache: int
    """Bytes that earlier prompts may take."""
    need: Need
    free: int
    backend: str
    """What llama.cpp was built for: cpu, cuda, metal or vulkan."""
    batch: int = BATCH
    """Tokens computed at once."""
    is_exact: bool = False
    """Whether flash attention is off: see `Asked.exact`."""
    layers: int = 0
    """All that the model has, with the one that makes logits."""
    gpu_layers: int | None = None
    """Of those, what the GPU has room for; None where llama.cpp alone knows its memory."""
    gpu_free: int = 0
    """Bytes that were free on the GPU before loading."""
    smaller: str = ""
    """What would have all layers on the GPU, where not all are."""
    name: str = ""
    """The file's."""
    best_type: str = "f16"
    """What the cache would be kept in if memory allowed."""

    @property
    def is_narrow(self) -> bool:
        """Whether the cache has fewer bits than it should."""
        return self.cache_type != self.best_type

    @property
    def is_split(self) -> bool:
        """Whether the GPU has no room for all layers."""
        return self.gpu_layers is not None and self.gpu_layers < self.layers

    def placed(self) -> str:
        """Which layers are computed where, for people."""
        if self.backend == "cpu":
            return "none, llama.cpp is built for the processor"
        if self.gpu_layers is None:
            return f"as many as llama.cpp finds to fit ({self.backend})"
        if self.is_split:
            return (
                f"about {self.gpu_layers} of {self.layers} ({self.backend}), the others on the"
                " processor"
            )
        return f"all {self.layers} ({self.backend})"

    def warnings(self) -> list[str]:
        """What the user should know before it is loaded."""
        found = []
        if self.is_split:
            less = f"; {self.smaller}" if self.smaller else ""
            found.append(
                f"`{self.name}` is larger than what the GPU has room for: it needs {self.need}, and"
                f" {size_text(self.gpu_free)} are free, of which llama.cpp leaves"
                f" {size_text(GPU_MARGIN)}; about {self.gpu_layers} of {self.layers} layers are"
                f" computed there and the others by the processor, which is slower{less}"
            )
        if self.is_narrow:
            found.append(f"memory is short: the context is kept in {self.cache_type}")
        return found

    def lines(self) -> list[str]:
        """What was decided and why, for `--verbose`."""
        of = f" of the {self.trained} it was trained with" if self.trained else ""
        return [
            f"context: {self.context} tokens{of}, cache in {self.cache_type}",
            f"threads: {self.threads}, one a physical core",
            f"layers on a GPU: {self.placed()}",
            "flash attention: where llama.cpp has it for this model",
            f"memory: {self.need}; {size_text(self.free)} free",
            *(
                [f"GPU memory: {size_text(self.gpu_free)} free before loading"]
                if self.gpu_layers is not None
                else []
            ),
        ]


def fit(
    model: GGUFFile,
    others: Sequence[Path],
    asked: Asked,
    *,
    free: int,
    cores: int,
    backend: str,
    gpu: int | None = None,
) -> Fit:
    """Choose what is open so that the model fits into `free` bytes and a GPU's `gpu`.

    `others` are files loaded beside it: adapters, a projector. Raises SpaceError, with the sizes
    and what would fit, when nothing does. What a GPU has no room for is computed by the processor.
    Where a GPU's memory is not known, the context is taken as it is, and llama.cpp decides about
    the layers. Metal's is the machine's.
    """
    on_gpu = backend in ("cuda", "vulkan")
    room = max(0, gpu - GPU_MARGIN) if on_gpu and gpu is not None else 0
    trained = model.number(f"{model.architecture}.context_length") or 0
    wanted = asked.context or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    wanted = min(wanted, trained) if trained else wanted  # the engine caps it likewise
    extra = sum(path.stat().st_size for path in others)
    budget = int(free * MARGIN) + room

    def found(context: int, cache_type: str) -> Fit:
        batch = context if asked.whole_texts else min(BATCH, context)
        need = reckon(model, context * asked.parallel, cache_type, extra, batch)
        scores = score_nbytes(model, context * asked.parallel, batch)
        is_exact = asked.exact and cache_type in ("f32", "f16") and backend == "cpu"
        if is_exact := is_exact and need.total + scores <= budget:
            need = replace(need, work=need.work + scores)
        left = int(max(0, budget - max(need.total, room)) * PROMPT_CACHE_SHARE)
        kept = min(left, PROMPT_CACHE_MAX)
        threads = asked.threads or cores
        fitted = Fit(
            context, trained, threads, cache_type, kept, need, free, backend, batch, is_exact,
            layers=layer_count(model) + 1, name=model.path.name, best_type=asked.best_type,
        )  # fmt: skip
        if not on_gpu or gpu is None:
            return fitted
        fitted = replace(fitted, gpu_free=gpu, gpu_layers=layers_within(model, need, room))
        less = smaller(model, wanted, room, extra, parallel=asked.parallel)
        return replace(fitted, smaller=less if fitted.is_split else "")

    first = found(wanted, asked.best_type)
    if (on_gpu and gpu is None) or asked.force or first.need.total <= budget:
        return first
    small_cache = ["q8_0"] if cache_may_be_quantized(model) else []
    for context in [wanted] if asked.context else halves(wanted):
        for cache_type in [*dict.fromkeys((asked.best_type, "f16")), *small_cache]:
            if (fitting := found(context, cache_type)).need.total <= budget:
                return fitting
    raise SpaceError(
        f"`{model.path.name}` does not fit: with {wanted} tokens of context it needs"
        f" {first.need}, and {size_text(free)} of memory are free"
        + (f" beside {size_text(gpu)} on the GPU" if room and gpu else ""),
        hint=what_would_fit(model, wanted, budget, extra, whole_texts=asked.whole_texts),
    )


def layers_within(model: GGUFFile, need: Need, room: int) -> int:
    """How many layers a GPU has room for, in llama.cpp's order: the output, then from the last."""
    count = layer_count(model)
    if need.total <= room:
        return count + 1
    sizes = [0] * (count + 1)
    for tensor in model.tensors:
        if found := BLOCK.match(tensor.name):
            sizes[min(int(found[1]), count - 1)] += tensor.nbytes
        elif tensor.name.startswith("output"):
            sizes[count] += tensor.nbytes
    left = room - need.work
    for layers, nbytes in enumerate(reversed(sizes)):
        left -= nbytes + (need.cache // max(1, count) if layers else 0)
        if left < 0:
            return layers
    return count + 1


def spread_over(
    asked: Spread, workers: Sequence[WorkerFacts], model: GGUFFile, need: Need, backend: str
) -> Spread:
    """How a model's layers are divided: the workers get all that they have room for.

    Who names workers has them because they are faster, or because the model is too large for here.
    A worker without a GPU tells llama.cpp of all its memory instead of what is free; so the shares
    are given. Where there are GPUs here, they take part, and llama.cpp divides by what it knows.
    """
    if backend != "cpu":
        return replace(asked, layers=ALL_LAYERS)
    free = [nbytes for worker in workers for nbytes in worker.free]
    part = MARGIN * sum(free) / max(1, need.total)
    layers = ALL_LAYERS if part >= 1 else int((layer_count(model) + 1) * part)  # 1: the output
    shares = tuple(nbytes >> 20 for nbytes in free) if all(free) else ()
    return replace(asked, layers=layers, shares=shares)


def halves(context: int) -> list[int]:
    """The context and its halves, down to the least that is of use."""
    found = [context]
    while found[-1] // 2 >= LEAST_CONTEXT:
        found.append(found[-1] // 2)
    return found


def reckon(model: GGUFFile, context: int, cache_type: str, extra: int, batch: int = BATCH) -> Need:
    """What a context of so many tokens takes, with `extra` bytes of files beside the model.

    batch: the tokens computed at once.
    """
    weights = sum(tensor.nbytes for tensor in model.tensors) + extra
    cache = int(cache_values(model, context) * CACHE_BYTES[cache_type])
    return Need(weights, cache, work_nbytes(model, context, batch))


def cache_values(model: GGUFFile, context: int) -> int:
    """Keys and values of so many tokens, over all layers."""
    if model.architecture in CACHELESS:
        return 0
    layers, heads = layer_count(model), per_layer(model, "attention.head_count")
    groups = per_layer(model, "attention.head_count_kv", heads)
    pairs = zip(groups[:layers], heads[:layers], strict=True)
    return context * sum(group * sum(head_widths(model, head)) for group, head in pairs)


def head_widths(model: GGUFFile, heads: int) -> tuple[int, int]:
    """Values of a head's key and of its value, in a layer of so many heads."""
    name = model.architecture
    width = (model.number(f"{name}.embedding_length") or 0) // heads if heads else 0
    keys = model.number(f"{name}.attention.key_length") or width
    return keys, model.number(f"{name}.attention.value_length") or width


def layer_count(model: GGUFFile) -> int:
    name = model.architecture
    return model.number(f"{name}.decoder_block_count") or model.number(f"{name}.block_count") or 0


def per_layer(model: GGUFFile, key: str, default: list[int] | None = None) -> list[int]:
    """A setting of each layer, which the header gives once for all or one by one."""
    value = model.metadata.get(f"{model.architecture}.{key}")
    layers = layer_count(model)
    if isinstance(value, Array):
        numbers = [item for item in value.items if isinstance(item, int)]
        return (numbers + [0] * layers)[:layers]
    if isinstance(value, int):
        return [value] * layers
    return default if default is not None else [0] * layers


def work_nbytes(model: GGUFFile, context: int, batch: int = BATCH) -> int:
    """Roughly what the graph's allocator takes: the widest values of a batch, in float32."""
    name = model.architecture
    width = model.number(f"{name}.embedding_length") or 0
    inner = max(per_layer(model, "feed_forward_length"), default=0)
    vocabulary = next((t.shape[0] for t in model.tensors if t.name == "token_embd.weight"), 0)
    if name in CACHELESS:
        vocabulary, context = 0, batch
    batch = min(batch, context)
    return batch * 4 * max(vocabulary + width, 2 * inner + 4 * width) + context * batch * 2


def score_nbytes(model: GGUFFile, context: int, batch: int) -> int:
    """What each token of a batch pays to each other one, in float32: flash attention has none."""
    seen = batch if model.architecture in CACHELESS else context
    return max(per_layer(model, "attention.head_count"), default=0) * batch * seen * 4


def cache_may_be_quantized(model: GGUFFile) -> bool:
    """Whether every head's keys and values come in whole blocks of Q8_0."""
    keys, values = head_widths(model, max(per_layer(model, "attention.head_count"), default=0))
    return bool(keys and values) and keys % Q8_BLOCK == 0 == values % Q8_BLOCK


def what_would_fit(
    model: GGUFFile, wanted: int, budget: int, extra: int, *, whole_texts: bool = False
) -> str:
    """A smaller context, where that is enough, else a smaller quantization."""
    if less := smaller(model, wanted, budget, extra, whole_texts=whole_texts):
        more = "" if less.startswith("--ctx") else "; or close other programs"
        return f"{less}{more}; --force loads it anyway" if more else less
    return "no quantization would fit; close other programs, or take a smaller model"


def smaller(
    model: GGUFFile,
    wanted: int,
    budget: int,
    extra: int,
    *,
    parallel: int = 1,
    whole_texts: bool = False,
) -> str:
    """The largest context that fits, else the largest quantization; empty where none does."""
    contexts = [
        n
        for n in halves(wanted)
        if reckon(model, n * parallel, "f16", extra, n if whole_texts else BATCH).total <= budget
    ]
    if contexts:
        return f"--ctx {contexts[0]} fits"
    rest = reckon(model, LEAST_CONTEXT, "f16", extra)
    room = budget - rest.total + rest.weights - extra
    fitting = [name for name, bits in BITS.items() if model.parameters * bits / 8 <= room]
    if fitting:
        nbytes = model.parameters * BITS[fitting[0]] / 8
        return (
            f"in {fitting[0]} (about {size_text(nbytes)}) it would fit:"
            f" decant export … -q {fitting[0]}"
        )
    return ""
