"""Plans how an engine runs on this machine: slots, context, flags, layers on workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from exporter.core.errors import SpaceError
from exporter.core.gguf import GGUFFile
from exporter.core.machine import available_nbytes, physical_cores
from exporter.llamacpp.gpus import free_nbytes
from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.adapters import Adapter
from runtime.engine.chat_format import AS_IT_IS, ChatFormat
from runtime.engine.llama_server import ServerSpec
from runtime.engine.memory_fit import DEFAULT_CONTEXT, Fit, FitOptions, fit, spread_over
from runtime.engine.memory_limit import copies, memory_limit
from runtime.engine.memory_need import CACHELESS
from runtime.engine.opened_model import ANY_TEMPLATE, Model
from runtime.engine.prompt_plan import with_prompts
from runtime.engine.speculation import OFF, Speculation, fitted_or_off
from runtime.gateway.scheduling.request_queue import LoraScales
from runtime.gateway.settings import Settings
from runtime.rpc.protocol import WorkerFacts
from runtime.scoring.score_process import score_spec

Role = Literal["generate", "fixed", "embed", "rerank", "score"]
"""`fixed` generates as well, with LoRA scales that are set when it starts."""
SAYING = ("generate", "score")
"""Roles whose requests set the LoRA scales."""
SLOTS = (4, 2, 1)
"""Tried in this order when the user gives no --parallel."""
POOLING_KEY = "pooling_type"  # present in GGUFs of embedding models
CAUSAL_KEY = "attention.causal"
POOLING_LAST, POOLING_RANK = 3, 4  # llama.h; the latter marks rerankers
UNUSED = ChatFormat(ANY_TEMPLATE)
"""The chat format of an engine without conversations, if the model's template was refused."""
SCORES = 2  # scoring requests at once: one is computed while the next is parsed
ROLE_FLAGS = {"embed": "--embeddings", "rerank": "--rerank"}
TALKLESS = frozenset((*ROLE_FLAGS, "score"))
"""Roles without conversations."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine that fits into the memory."""

    spec: ServerSpec
    fit: Fit
    is_short: bool
    """Whether short memory limits its context, cache type or layers on the GPU."""
    text_max: int = 0
    """Tokens of the longest text that becomes a vector or is ranked."""


@dataclass(frozen=True, slots=True)
class Key:
    """Identifies one engine process."""

    base: str
    role: Role = "generate"
    lora_scales: LoraScales = ()
    """The LoRA scales, for roles whose requests cannot set them."""
    adapters: tuple[Adapter, ...] = ()
    """The adapters that the scales belong to."""
    name: str = field(default="", compare=False)
    """The model name in the engine's answers."""


@dataclass(frozen=True, slots=True)
class Room:
    """The resources of a plan: the toolchain, the workers, and the memory that is reserved."""

    toolchain: Toolchain
    workers: Sequence[WorkerFacts] = ()
    """Machines that compute layers."""
    reserved: int = 0
    """Bytes of free memory that starting engines are about to take."""


def plan_engine(key: Key, model: Model, settings: Settings, room: Room) -> Plan:
    """The plan of one engine. Raises SpaceError when it does not fit."""
    speculation = speculation_for(key.role, model, settings)
    settings = replace(settings, speculation=speculation)
    parallel, fitted = choose_slots(key.role, model, settings, room)
    limit = memory_limit(model.header, fitted, parallel, sees=model.projector is not None)
    if key.role == "score":
        spec = replace(score_spec(model, fitted, SCORES), memory=limit)
        return Plan(spec, fitted, is_short(fitted, settings))
    server = server_spec(key, model, parallel, fitted)
    # the user's flags may make it larger than planned
    server = replace(server, memory=None if settings.extra else limit)
    flags = (*speculation.flags(), *flags_of(settings, key.role))
    server = replace(server, extra=(*server.extra, *flags))
    if settings.rpc is not None and not model.is_encoder_decoder:
        backend = room.toolchain.info["backend"]
        spread = spread_over(settings.rpc, room.workers, model.header, fitted.need, backend)
        # saved prompts would travel from the workers and back
        server = replace(server, rpc=spread, prompt_cache=0)
    if key.role in ("generate", "fixed"):
        kept = settings.prompt_folder, settings.prompt_nbytes
        server = with_prompts(server, model, room.toolchain, speculation, settings.extra, kept)
    # llama-server keeps one token free when it computes a text in pieces
    text_max = server.context - may_be_cut(model.header, key.role)
    return Plan(server, fitted, is_short(fitted, settings), text_max)


def speculation_for(role: Role, model: Model, settings: Settings) -> Speculation:
    """The kind of speculation of an engine; `OFF` if it generates no text."""
    is_generating = role in ("generate", "fixed")
    return fitted_or_off(settings.speculation, model) if is_generating else OFF


def choose_slots(role: Role, model: Model, settings: Settings, room: Room) -> tuple[int, Fit]:
    """The number of slots, and the memory fit with them.

    Takes the most slots that leave the whole context, else the fewest. Raises SpaceError when
    the fewest do not fit.
    """
    *more, fewest = slots_to_try(role, model, settings)
    for parallel in more:
        with suppress(SpaceError):
            fitted = fit_slots(role, model, parallel, settings, room)
            if not is_short(fitted, settings):
                return parallel, fitted
    return fewest, fit_slots(role, model, fewest, settings, room)


def slots_to_try(role: Role, model: Model, settings: Settings) -> tuple[int, ...]:
    """Slot counts to try, the largest first."""
    if is_cut_wrongly(model.header, role) or role == "score":
        return (1,)
    if settings.parallel:
        return (settings.parallel,)
    return (1,) if model.is_encoder_decoder else SLOTS


def fit_slots(role: Role, model: Model, parallel: int, settings: Settings, room: Room) -> Fit:
    """The memory fit with a given number of slots. Raises SpaceError when it does not fit."""
    is_whole = role in ROLE_FLAGS and not may_be_cut(model.header, role)
    files = [adapter.path for adapter in model.adapters]
    lent = sum(sum(worker.free) for worker in room.workers)
    return fit(
        model.header,
        files + ([model.projector] if model.projector else []),
        FitOptions(
            settings.context,
            settings.threads,
            parallel,
            whole_texts=is_whole,
            exact=role in TALKLESS,
            wide_cache=role == "score",
            draft=settings.speculation.draft,
        ),
        free=max(0, available_nbytes() - room.reserved) + lent,
        cores=physical_cores(),
        backend=room.toolchain.info["backend"],
        gpu=free_nbytes(room.toolchain),
    )


def flags_of(settings: Settings, role: Role) -> tuple[str, ...]:
    """The user's flags for llama-server, and flags that follow from the settings."""
    if settings.isolate and role == "fixed":
        # processes cannot share weights that are repacked for faster kernels
        return (*settings.extra, "--no-repack")
    return settings.extra


def is_short(fitted: Fit, settings: Settings) -> bool:
    wanted = settings.context or min(fitted.trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    least = min(wanted, fitted.trained) if fitted.trained else wanted
    return fitted.context < least or fitted.is_narrow or fitted.is_split


def server_spec(key: Key, model: Model, parallel: int, fitted: Fit) -> ServerSpec:
    """The engine's process: its files, slots and flags, by its role."""
    role, lora_scales, name = key.role, key.lora_scales, key.name or key.base
    alias = ("-a", name.replace(",", "-"))  # llama-server splits it at commas
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
        copies=copies(model.header, fitted, parallel),
    )
    if role == "generate":
        return found
    if role == "fixed":
        return replace(found, scales=lora_scales)
    batch = str(fitted.batch)
    extra = [*alias, "--metrics", ROLE_FLAGS[role], "-b", batch, "-ub", batch]
    # slots with separate caches are computed in steps of equal length, which cuts longer texts
    # into pieces: a mean would cover the last piece only
    extra += ["--kv-unified", "--kv-unified-per-slot", str(fitted.context)]
    extra += ["-fa", "off"] if fitted.is_exact else []
    has_pooling = model.header.number(f"{model.header.architecture}.{POOLING_KEY}")
    if role == "embed" and not has_pooling:
        extra += ["--pooling", "mean"]
    projector = found.projector if role == "embed" else None
    chat = UNUSED if model.is_handed_over else AS_IT_IS
    return replace(found, extra=tuple(extra), scales=lora_scales, projector=projector, chat=chat)


def may_be_cut(model: GGUFFile, role: Role) -> bool:
    """Whether a text may be computed in pieces: its last token attends to all others."""
    pooling = model.number(f"{model.architecture}.{POOLING_KEY}")
    ends_in_last = pooling == POOLING_LAST if role == "embed" else pooling == POOLING_RANK
    return ends_in_last and is_causal(model) and model.architecture not in CACHELESS


def is_causal(model: GGUFFile) -> bool:
    return model.metadata.get(f"{model.architecture}.{CAUSAL_KEY}") is not False


def is_cut_wrongly(model: GGUFFile, role: Role) -> bool:
    """Whether llama-server would cut a text that must be whole, when another text precedes it.

    llama-server checks only the pooling. With one slot no other text precedes.
    """
    pooling = model.number(f"{model.architecture}.{POOLING_KEY}")
    has_cache = model.architecture not in CACHELESS
    return role == "embed" and pooling == POOLING_LAST and has_cache and not is_causal(model)
