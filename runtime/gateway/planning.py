"""How a child is run on this machine: its slots, its context, what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from exporter.core.errors import SpaceError
from exporter.core.machine import available_nbytes, physical_cores
from exporter.toolchain import Toolchain
from runtime.chat_format import AS_IT_IS
from runtime.child import ServerSpec
from runtime.engine import Model
from runtime.fit import DEFAULT_CONTEXT, Asked, Fit, fit, spread_over
from runtime.gateway.admission import Voice
from runtime.gateway.settings import Settings
from runtime.rpc import WorkerFacts

Role = Literal["generate", "fixed", "embed", "rerank"]
"""`fixed` generates, too, with adapters that are settled when it starts."""
SLOTS = (4, 2, 1)
"""Tried in this order where the user leaves it open."""
POOLING_KEY = "pooling_type"  # in a GGUF that was made for embeddings
EMBEDDED_MAX = 2048
"""Tokens of a text that becomes a vector: they are read at once, and the room that this takes
grows with their square."""
POOLING_RANK = 4  # llama.h: of one that was made to rank documents
ROLE_FLAGS = {"embed": "--embeddings", "rerank": "--rerank"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A child that fits."""

    spec: ServerSpec
    fit: Fit
    is_short: bool
    """Whether memory made its context smaller than it would be."""


@dataclass(frozen=True, slots=True)
class Key:
    """What has a child of its own."""

    base: str
    role: Role = "generate"
    voice: Voice = ()
    """The adapters' scales, where requests cannot say them."""
    name: str = field(default="", compare=False)
    """What the child calls itself in its answers."""


def planned(
    key: Key,
    model: Model,
    settings: Settings,
    toolchain: Toolchain,
    workers: Sequence[WorkerFacts] = (),
) -> Plan:
    """How a child is run, here and with those workers. Raises SpaceError when it does not fit."""
    open_slots = (1,) if model.is_encoder_decoder else SLOTS
    slots = (settings.parallel,) if settings.parallel else open_slots
    error: SpaceError | None = None
    found: tuple[int, Fit] | None = None
    short = True
    for parallel in slots:
        try:
            fitted = fitting(model, parallel, settings, toolchain, workers)
        except SpaceError as caught:
            error = caught
            continue
        found = parallel, fitted
        if not (short := is_short(fitted, settings)):
            break
    if found is None:
        assert error is not None
        raise error
    here = spec(key, model, *found)
    here = replace(here, extra=(*here.extra, *settings.extra))
    if settings.isolate and key.role == "fixed":
        # copies of the weights in the order that kernels like best could not be shared
        here = replace(here, extra=(*here.extra, "--no-repack"))
    if settings.rpc is None or model.is_encoder_decoder:
        return Plan(here, found[1], short)
    backend = toolchain.info["backend"]
    rpc = spread_over(settings.rpc, workers, model.header, found[1].need, backend)
    # earlier prompts would be fetched from the workers, and sent back
    return Plan(replace(here, rpc=rpc, prompt_cache=0), found[1], short)


def fitting(
    model: Model,
    parallel: int,
    settings: Settings,
    toolchain: Toolchain,
    workers: Sequence[WorkerFacts],
) -> Fit:
    beside = [adapter.path for adapter in model.adapters]
    return fit(
        model.header,
        beside + ([model.projector] if model.projector else []),
        Asked(settings.context, settings.threads, parallel),
        free=available_nbytes() + sum(sum(worker.free) for worker in workers),
        cores=physical_cores(),
        backend=toolchain.info["backend"],
    )


def is_short(fitted: Fit, settings: Settings) -> bool:
    wanted = settings.context or min(fitted.trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    least = min(wanted, fitted.trained) if fitted.trained else wanted
    return fitted.context < least or fitted.cache_type != "f16"


def spec(key: Key, model: Model, parallel: int, fitted: Fit) -> ServerSpec:
    role, voice, name = key.role, key.voice, key.name or key.base
    alias = ("-a", name.replace(",", "-"))  # llama-server cuts it at commas
    found = ServerSpec(
        model.header.path,
        fitted.context,
        fitted.threads,
        parallel,
        tuple(adapter.path for adapter in model.adapters),
        model.projector,
        fitted.cache_type,
        fitted.prompt_cache,
        "seq2seq" if model.is_encoder_decoder else "llama-server",
        chat=model.chat,
        extra=(*alias, "--metrics"),
    )
    if role == "generate":
        return found
    if role == "fixed":
        return replace(found, scales=voice)
    batch = str(min(fitted.context, EMBEDDED_MAX))
    extra = [*alias, "--metrics", ROLE_FLAGS[role], "-b", batch, "-ub", batch]
    has_pooling = model.header.number(f"{model.header.architecture}.{POOLING_KEY}")
    if role == "embed" and not has_pooling:
        extra += ["--pooling", "mean"]
    projector = found.projector if role == "embed" else None
    return replace(found, extra=tuple(extra), scales=voice, projector=projector, chat=AS_IT_IS)
