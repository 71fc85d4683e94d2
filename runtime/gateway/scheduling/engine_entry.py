"""One engine of the pool: its phase, its queue, its figures, and the requests it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.core.errors import DecantError, EngineError, SpaceError
from runtime.engine.adapters import Adapter
from runtime.engine.llama_server import Server
from runtime.engine.lora_scales import EXPLICIT_MAX
from runtime.engine.opened_model import Model
from runtime.engine.request_texts import Front, Fronts
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.scheduling.engine_phase import (
    BACKOFF_S,
    Failed,
    Loaded,
    Loading,
    Phase,
    PhaseName,
    Unloaded,
)
from runtime.gateway.scheduling.placement import SAYING, TALKLESS, Key, Role
from runtime.gateway.scheduling.request_queue import LoraScales, RequestQueue
from runtime.gateway.scheduling.upstream import Address

ASIDE = 2  # requests without a slot at once; more would delay the health check
CHOSEN_NICENESS = 5  # about a third of a processor that other engines use as well


@dataclass(eq=False)
class EngineEntry:
    """An engine and its model, in any phase."""

    key: Key
    model: Model
    queue: RequestQueue
    phase: Phase = field(default_factory=Unloaded)
    fronts: Fronts = field(default_factory=Fronts)
    """Prepare requests for the engine, by the adapters that answer."""
    starting: asyncio.Task[None] | None = None
    """The task that waits for the backoff, then loads the model."""
    beside: RequestQueue = field(init=False)
    """Admits requests that need no slot."""
    users: int = 0
    """Requests that wait or are being answered."""
    last_used: float = 0
    began: float = 0
    """The time of the last load, by the pool's clock."""
    load_s: float = 0
    """Duration of the last load, in seconds."""
    nbytes: int = 0
    """Planned memory, in bytes."""
    context: int = 0
    text_max: int = 0
    """Tokens of the longest text that becomes a vector or is ranked."""
    restarts: int = 0
    crashes: int = 0
    """Number of failures in a row."""
    out: dict[int, str] = field(default_factory=dict)
    """Adapters that could not be loaded: their index, and the reason."""
    successor: EngineEntry | None = None
    """The engine that replaces this one as soon as it is loaded, with the adapters served then."""
    is_retired: bool = False
    """Whether it answers only the requests that it has, and ends after the last of them."""
    is_ending: bool = False
    """Whether it is retired, has no request any more, and its process is being stopped."""

    def __post_init__(self) -> None:
        self.beside = RequestQueue(ASIDE, self.queue.settings, self.queue.clock)

    @property
    def name(self) -> str:
        role = self.key.role
        return self.key.base if role == "generate" else f"{self.key.name or self.key.base} ({role})"

    @property
    def state(self) -> PhaseName:
        """The phase's name, as clients see it."""
        return self.phase.name

    @property
    def server(self) -> Server | None:
        """The process, in Loading and Loaded."""
        return self.phase.server if isinstance(self.phase, Loading | Loaded) else None

    @property
    def address(self) -> Address | None:
        """The address of the process in Loaded; None in other phases."""
        return self.phase.address if isinstance(self.phase, Loaded) else None

    @property
    def progress(self) -> float:
        """The part of the file that is loaded, from 0 to 1."""
        return self.phase.progress if isinstance(self.phase, Loading) else float(self.is_loaded)

    @property
    def is_loaded(self) -> bool:
        return isinstance(self.phase, Loaded)

    def fail(self, error: DecantError, now: float) -> Failed:
        """Enter Failed; each failure in a row lengthens the wait before the next start."""
        wait_s = BACKOFF_S[min(self.crashes, len(BACKOFF_S) - 1)]
        self.crashes += 1
        if isinstance(error, SpaceError):  # no process was started, so none crashed
            self.crashes, wait_s = 0, 0
        failed = self.phase = Failed(error, now + wait_s)
        return failed

    @property
    def is_idle(self) -> bool:
        return self.is_loaded and not self.users

    @property
    def engine_model(self) -> Model:
        """The model with the adapters that could be loaded."""
        if not self.out:
            return self.model
        kept = [one for place, one in enumerate(self.model.adapters) if place not in self.out]
        return replace(self.model, adapters=tuple(kept))

    @property
    def engine_key(self) -> Key:
        """The key without the scales of adapters that could not be loaded."""
        lora_scales = (
            scale for place, scale in enumerate(self.key.lora_scales) if place not in self.out
        )
        return replace(self.key, lora_scales=tuple(lora_scales)) if self.out else self.key

    def missing(self, lora_scales: LoraScales) -> str:
        """Why the engine cannot answer with these LoRA scales; empty when it can."""
        for place, why in self.out.items():
            if place < len(lora_scales) and lora_scales[place]:
                return f"the adapter {self.model.adapters[place].name!r} cannot be used: {why}"
        return ""

    def has(self, needs: Sequence[Adapter]) -> bool:
        """Whether its process has these adapters, or will have them after the present start."""
        return holds(self.model.adapters, needs)

    def scales_for(self, resolved: ResolvedModel) -> LoraScales:
        """The LoRA scales of a request in the order of this engine's adapters."""
        if resolved.model.adapters == self.model.adapters:
            return resolved.lora_scales
        scales = dict(zip(resolved.model.adapters, resolved.lora_scales, strict=True))
        return tuple(scales.get(adapter, 0.0) for adapter in self.model.adapters)

    def front(self, resolved: ResolvedModel, scales: Sequence[float]) -> Front:
        """The preparation of a request; scales: those that choose the template."""
        if self.key.role in TALKLESS:
            return self.fronts.base
        return replace(self.fronts, own=resolved.model.own).of(scales)

    def for_engine(self, body: Mapping[str, Any], named: Sequence[Adapter]) -> Mapping[str, Any]:
        """The request with the engine's own numbers in `lora`, and all other adapters at 0.

        named: the adapters that the body's numbers stand for, in order. A body without `lora` is
        for a model that has no adapters any more.
        """
        scales = body.get("lora", [] if self.key.role in SAYING else None)
        loaded = self.engine_model.adapters
        if not isinstance(scales, list) or not (loaded or "lora" in body):
            return body
        if self.out or tuple(named) != loaded:
            given = {one["id"]: one for one in scales if is_numbered(one)}
            by_adapter = {one: given[place] for place, one in enumerate(named) if place in given}
            scales = [
                {**by_adapter.get(adapter, {"scale": 0.0}), "id": number}
                for number, adapter in enumerate(loaded)
            ]
        elif any(is_numbered(one) and one["id"] >= len(loaded) for one in scales):
            # of a number beyond 32 bits, llama-server takes the lower ones
            known = [one for one in scales if not is_numbered(one) or one["id"] < len(loaded)]
            scales = known or [{"id": 0, "scale": 0.0}][: len(loaded)]
        if len(scales) > EXPLICIT_MAX:
            scales = [one for one in scales if not is_zero(one)] or scales[:1]
        return {**body, "lora": scales}

    @property
    def is_chosen(self) -> bool:
        """Whether a client chose its LoRA scales; there is no limit to the number of choices."""
        is_zero = bool(self.key.adapters) and not any(self.key.lora_scales)
        return is_zero or is_chosen(self.key.lora_scales, self.model)

    @property
    def niceness(self) -> int:
        """The process's niceness: engines for client-chosen scales yield to all others."""
        return CHOSEN_NICENESS if self.is_chosen else 0

    @property
    def reserved(self) -> int:
        """Bytes of memory that the engine is about to take."""
        is_planned = isinstance(self.phase, Loading) and self.phase.server is not None
        return self.nbytes if is_planned else 0


class CrowdedError(SpaceError):
    """All engines for client-chosen scales that the limit allows are in use."""


def as_reason(error: BaseException) -> DecantError:
    """The error for an engine whose start failed."""
    if isinstance(error, DecantError):
        return error
    message = f"{type(error).__name__}: {error}".removesuffix(": ")
    return EngineError(f"its start failed: {message}", hint="the log says more")


def key_of(resolved: ResolvedModel, role: Role) -> Key:
    """The engine for a model and role: one for all scales where requests can set them."""
    if role in SAYING:
        return Key(resolved.base, role)
    needs = resolved.needs
    scales = dict(zip(resolved.model.adapters, resolved.lora_scales, strict=True))
    return Key(resolved.base, role, tuple(map(scales.__getitem__, needs)), needs, resolved.id)


def model_for(key: Key, model: Model) -> Model:
    """The model that an engine loads: with all adapters where requests choose among them."""
    if key.role in SAYING:
        return model
    kept = [place for place, adapter in enumerate(model.adapters) if adapter in key.adapters]
    return replace(
        model,
        adapters=tuple(model.adapters[place] for place in kept),
        own=tuple(model.own[place] for place in kept) if model.own else (),
    )


def holds(adapters: Sequence[Adapter], needs: Sequence[Adapter]) -> bool:
    """Whether all needed adapters are among these."""
    # looking for the object itself first takes a tenth of the time of comparing its fields
    return all(any(one is need for one in adapters) or need in adapters for need in needs)


def is_numbered(value: object) -> bool:
    """Whether an item of `lora` names an adapter by its number."""
    return isinstance(value, dict) and type(value.get("id")) is int


def is_zero(value: object) -> bool:
    """Whether an item of `lora` sets a scale of 0, like an adapter that the list leaves out."""
    return is_numbered(value) and isinstance(value, dict) and value.get("scale") == 0


def is_chosen(lora_scales: LoraScales, model: Model) -> bool:
    """Whether the LoRA scales are a client's choice: not the base's, nor a listed adapter's."""
    listed = [adapter.scale for adapter in model.adapters]
    return any(lora_scales) and lora_scales not in [
        tuple(scale if one == place else 0.0 for one in range(len(listed)))
        for place, scale in enumerate(listed)
    ]
