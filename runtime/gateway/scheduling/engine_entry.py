"""A child of the fleet: what is known of it, and which requests are its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.core.errors import DecantError, EngineError, SpaceError
from runtime.engine.llama_server import Server
from runtime.engine.opened_model import Model
from runtime.engine.request_texts import Fronts
from runtime.gateway.catalog import Named
from runtime.gateway.scheduling.engine_phase import (
    BACKOFF_S,
    Failed,
    Loaded,
    Loading,
    Phase,
    PhaseName,
    Unloaded,
)
from runtime.gateway.scheduling.placement import SAYING, Key, Role
from runtime.gateway.scheduling.request_queue import Gate, Voice
from runtime.gateway.scheduling.upstream import Address

ASIDE = 2  # requests that a child answers beside its slots; more would keep it from its health
CHOSEN_NICENESS = 5  # a third of a processor that others want, too


@dataclass(eq=False)
class Child:
    """A model that is, was or will be loaded."""

    key: Key
    model: Model
    gate: Gate
    phase: Phase = field(default_factory=Unloaded)
    fronts: Fronts = field(default_factory=Fronts)
    """How requests are made ready for it, by the adapters that answer."""
    starting: asyncio.Task[None] | None = None
    """Waits until it may be started, then loads it."""
    beside: Gate = field(init=False)
    """For requests that need no slot."""
    users: int = 0
    """Requests that are answered or wait here."""
    last_used: float = 0
    began: float = 0
    """When it was last loaded, and how long that took."""
    load_s: float = 0
    nbytes: int = 0
    """Of memory, as reckoned."""
    context: int = 0
    text_max: int = 0
    """Tokens of the longest text that becomes a vector or is ranked."""
    restarts: int = 0
    crashes: int = 0
    """In a row."""
    out: dict[int, str] = field(default_factory=dict)
    """Adapters without which it was loaded, by their places, and why."""

    def __post_init__(self) -> None:
        self.beside = Gate(ASIDE, self.gate.settings, self.gate.clock)

    @property
    def name(self) -> str:
        role = self.key.role
        return self.key.base if role == "generate" else f"{self.key.name or self.key.base} ({role})"

    @property
    def state(self) -> PhaseName:
        """The phase's name, as clients are told."""
        return self.phase.name

    @property
    def server(self) -> Server | None:
        """The process that loads or answers."""
        return self.phase.server if isinstance(self.phase, Loading | Loaded) else None

    @property
    def address(self) -> Address | None:
        """Where it answers; None in every phase but Loaded."""
        return self.phase.address if isinstance(self.phase, Loaded) else None

    @property
    def progress(self) -> float:
        """The part of the file that is loaded, from 0 to 1."""
        return self.phase.progress if isinstance(self.phase, Loading) else float(self.is_loaded)

    @property
    def is_loaded(self) -> bool:
        return isinstance(self.phase, Loaded)

    def fail(self, error: DecantError, now: float) -> Failed:
        """Enter Failed; each failure in a row has the next start wait for longer."""
        wait_s = BACKOFF_S[min(self.crashes, len(BACKOFF_S) - 1)]
        self.crashes += 1
        if isinstance(error, SpaceError):  # nothing was started, so nothing is wrong with it
            self.crashes, wait_s = 0, 0
        failed = self.phase = Failed(error, now + wait_s)
        return failed

    @property
    def is_idle(self) -> bool:
        return self.is_loaded and not self.users

    @property
    def engine_model(self) -> Model:
        """What is loaded: the model with those adapters that can be."""
        if not self.out:
            return self.model
        kept = [one for place, one in enumerate(self.model.adapters) if place not in self.out]
        return replace(self.model, adapters=tuple(kept))

    @property
    def engine_key(self) -> Key:
        voice = (scale for place, scale in enumerate(self.key.voice) if place not in self.out)
        return replace(self.key, voice=tuple(voice)) if self.out else self.key

    def missing(self, voice: Voice) -> str:
        """Why it cannot answer with those scales; empty where it can."""
        for place, why in self.out.items():
            if place < len(voice) and voice[place]:
                return f"the adapter {self.model.adapters[place].name!r} cannot be used: {why}"
        return ""

    def for_engine(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request whose adapters have the numbers that the engine knows them by."""
        asked = body.get("lora")
        if not self.out or not isinstance(asked, list):
            return body
        kept = [place for place in range(len(self.model.adapters)) if place not in self.out]
        lora = [
            {**one, "id": kept.index(one["id"])}
            for one in asked
            if isinstance(one, dict) and one.get("id") in kept
        ]
        return {**body, "lora": lora}

    @property
    def is_chosen(self) -> bool:
        """Whether a client has asked for scales that are not listed: there is no end of those."""
        return is_chosen(self.key.voice, self.model)

    @property
    def niceness(self) -> int:
        """One of those leaves the processor to the engines that everybody asks."""
        return CHOSEN_NICENESS if self.is_chosen else 0

    @property
    def reserved(self) -> int:
        """Bytes that it is about to take."""
        is_planned = isinstance(self.phase, Loading) and self.phase.server is not None
        return self.nbytes if is_planned else 0


class CrowdedError(SpaceError):
    """There are as many children of their kind as there may be, all in use."""


def as_reason(error: BaseException) -> DecantError:
    """Why a child could not be started."""
    if isinstance(error, DecantError):
        return error
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    return EngineError(f"it could not be started: {told}", hint="the log says more")


def key_of(named: Named, role: Role) -> Key:
    """Which child answers for a model: one for all scales, where requests can say them."""
    if role in SAYING:
        return Key(named.base, role)
    return Key(named.base, role, named.voice, named.id)


def is_chosen(voice: Voice, model: Model) -> bool:
    """Whether a client has asked for scales that are not listed."""
    listed = [adapter.scale for adapter in model.adapters]
    return any(voice) and voice not in [
        tuple(scale if one == place else 0.0 for one in range(len(listed)))
        for place, scale in enumerate(listed)
    ]
