"""Chooses the settings with which a model fits into this machine's memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.errors import SpaceError
from exporter.core.gguf import GGUFFile
from exporter.core.machine import useful_threads
from exporter.core.paths import size_text
from runtime.engine.memory_need import (
    BATCH,
    Need,
    cache_may_be_quantized,
    layer_count,
    reckon,
    score_nbytes,
)
from runtime.rpc.protocol import ALL_LAYERS, Spread, WorkerFacts

DEFAULT_CONTEXT = 8192  # tokens; enough for a conversation, and its cache fits a laptop
LEAST_CONTEXT = 512  # tokens; below this one question fills it
MARGIN = 0.9  # of the free memory; the rest is for other programs
GPU_MARGIN = 1 << 30  # bytes that llama.cpp leaves free on a GPU: its --fit-target
PROMPT_CACHE_MAX = 1 << 30  # bytes of earlier prompts kept in memory
PROMPT_CACHE_SHARE = 0.25  # of the memory left over
BLOCK = re.compile(r"blk\.(\d+)\.")
# bits per weight of whole models of several billion weights, from llama-quantize's table
BITS = {"Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q3_K_M": 4.0, "Q2_K": 3.35,
        "IQ2_XXS": 2.38}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Settings that the user or the caller has fixed; None leaves one open."""

    context: int | None = None
    threads: int | None = None
    parallel: int = 1
    force: bool = False
    """Load the model even if it seems not to fit."""
    rpc: Spread | None = None
    """Workers that compute layers, too; `spread_over` divides the layers."""
    whole_texts: bool = False
    """Whether a text must be computed in one batch, however long it is."""
    exact: bool = False
    """Whether attention is summed in 32 bits if memory allows: flash attention sums in 16, and a
    text's vector then depends on the other texts of its batch."""
    wide_cache: bool = False
    """Whether keys and values are stored in 32 bits if memory allows."""
    gpu_layers: int | None = None
    """Layers on the GPU; None for as many as fit."""
    draft: GGUFFile | None = None
    """The model that guesses tokens: see `speculation`."""

    @property
    def best_type(self) -> str:
        return "f32" if self.wide_cache else "f16"


@dataclass(frozen=True, slots=True)
class Fit:
    """The settings of a model on this machine."""

    context: int
    """Tokens per conversation."""
    trained: int
    """Tokens of context that the model was trained with; 0 if its header does not say."""
    threads: int
    cache_type: str
    """f16, or q8_0 if only that fits; f32 if `FitOptions.wide_cache` is set and it fits."""
    prompt_cache: int
    """Bytes for the caches of earlier prompts."""
    need: Need
    free: int
    backend: str
    """The backend of the llama.cpp build: cpu, cuda, metal or vulkan."""
    batch: int = BATCH
    """Tokens computed at once."""
    is_exact: bool = False
    """Whether flash attention is off: see `FitOptions.exact`."""
    layers: int = 0
    """The number of the model's layers, including the output layer."""
    gpu_layers: int | None = None
    """How many of them fit on the GPU; None if only llama.cpp knows its memory."""
    gpu_free: int = 0
    """Free bytes on the GPU before loading."""
    smaller: str = ""
    """A change that puts all layers on the GPU; empty if none is needed or possible."""
    name: str = ""
    """The name of the model's file."""
    best_type: str = "f16"
    """The cache's type with enough memory."""

    @property
    def is_narrow(self) -> bool:
        """Whether the cache has fewer bits than `best_type`."""
        return self.cache_type != self.best_type

    @property
    def is_split(self) -> bool:
        """Whether only some of the layers fit on the GPU."""
        return self.gpu_layers is not None and self.gpu_layers < self.layers

    def placed(self) -> str:
        """Where the layers are computed, as text for people."""
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
        """Warnings for the user before the model is loaded."""
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
        """The settings and their reasons, for `--verbose`."""
        of = f" of the {self.trained} it was trained with" if self.trained else ""
        return [
            f"context: {self.context} tokens{of}, cache in {self.cache_type}",
            f"threads: {self.threads}",
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
    options: FitOptions,
    *,
    free: int,
    cores: int,
    backend: str,
    gpu: int | None = None,
) -> Fit:
    """Choose the open settings so that the model fits into `free` bytes and a GPU's `gpu` bytes.

    others: files loaded beside the model: adapters, a projector. Raises SpaceError, with the sizes
    and a change that would fit, if no settings fit. The processor computes the layers that the GPU
    has no room for. If a GPU's memory is unknown, the context stays, and llama.cpp places layers.
    Metal's memory is the machine's.
    """
    on_gpu = backend in ("cuda", "vulkan")
    room = max(0, gpu - GPU_MARGIN) if on_gpu and gpu is not None else 0
    trained = model.number(f"{model.architecture}.context_length") or 0
    wanted = options.context or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    wanted = min(wanted, trained) if trained else wanted  # the engine caps it, too
    extra = sum(path.stat().st_size for path in others)
    budget = int(free * MARGIN) + room

    def found(context: int, cache_type: str) -> Fit:
        batch = context if options.whole_texts else min(BATCH, context)
        tokens = context * options.parallel
        need = reckon(model, tokens, cache_type, extra, batch, options.draft)
        scores = score_nbytes(model, tokens, batch)
        is_exact = options.exact and cache_type in ("f32", "f16") and backend == "cpu"
        if is_exact := is_exact and need.total + scores <= budget:
            need = replace(need, work=need.work + scores)
        left = max(0, budget - max(need.total, room))
        kept = min(int(left * PROMPT_CACHE_SHARE), PROMPT_CACHE_MAX)
        threads = options.threads or useful_threads(need.weights, cores)
        fitted = Fit(
            context, trained, threads, cache_type, kept, need, free, backend, batch, is_exact,
            layer_count(model) + 1, name=model.path.name, best_type=options.best_type,
        )  # fmt: skip
        if not on_gpu or gpu is None:
            return fitted
        fitted = replace(fitted, gpu_free=gpu, gpu_layers=layers_within(model, need, room))
        less = smaller(model, wanted, room, extra, parallel=options.parallel)
        return replace(fitted, smaller=less if fitted.is_split else "")

    first = found(wanted, options.best_type)
    if (on_gpu and gpu is None) or options.force or first.need.total <= budget:
        return first
    small_cache = ["q8_0"] if cache_may_be_quantized(model) else []
    for context in [wanted] if options.context else halves(wanted):
        for cache_type in [*dict.fromkeys((options.best_type, "f16")), *small_cache]:
            if (fitting := found(context, cache_type)).need.total <= budget:
                return fitting
    raise SpaceError(
        f"`{model.path.name}` does not fit: with {wanted} tokens of context it needs"
        f" {first.need}, and {size_text(free)} of memory are free"
        + (f" beside {size_text(gpu)} on the GPU" if room and gpu else ""),
        hint=what_would_fit(model, wanted, budget, extra, whole_texts=options.whole_texts),
    )


def layers_within(model: GGUFFile, need: Need, room: int) -> int:
    """How many layers fit on a GPU in llama.cpp's order: the output, then the last layers."""
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
    spread: Spread, workers: Sequence[WorkerFacts], model: GGUFFile, need: Need, backend: str
) -> Spread:
    """Divide a model's layers: the workers get as many as fit.

    Users name workers for speed, or because the model is too large for this machine. A worker
    without a GPU reports all its memory to llama.cpp, not the free part, so the shares are passed.
    If this machine has GPUs, they take part, and llama.cpp divides by the memory that it knows.
    """
    if backend != "cpu":
        return replace(spread, layers=ALL_LAYERS)
    free = [nbytes for worker in workers for nbytes in worker.free]
    part = MARGIN * sum(free) / max(1, need.total)
    layers = ALL_LAYERS if part >= 1 else int((layer_count(model) + 1) * part)  # 1: the output
    shares = tuple(nbytes >> 20 for nbytes in free) if all(free) else ()
    return replace(spread, layers=layers, shares=shares)


def halves(context: int) -> list[int]:
    """The context and its halves, down to LEAST_CONTEXT."""
    found = [context]
    while found[-1] // 2 >= LEAST_CONTEXT:
        found.append(found[-1] // 2)
    return found


def what_would_fit(
    model: GGUFFile, wanted: int, budget: int, extra: int, *, whole_texts: bool = False
) -> str:
    """A hint: a smaller context if that is enough, else a smaller quantization."""
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
    """The largest context that fits, else the largest quantization; empty if none does."""
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
