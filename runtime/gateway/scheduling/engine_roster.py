"""Which engine answers a request, while adapters are added and removed. Starts and stops nothing.

llama-server takes its adapters when it starts. A request for an adapter that an engine lacks goes
to the engine's successor. Requests for other adapters stay at the engine until the successor is
loaded and takes its place. Then the engine is retired: it answers the requests that it has, and
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from runtime.engine.adapters import Adapter
from runtime.engine.opened_model import Model
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.scheduling.engine_entry import EngineEntry, holds, key_of, model_for
from runtime.gateway.scheduling.engine_phase import Loaded, Loading
from runtime.gateway.scheduling.placement import SAYING, Key, Role
from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.settings import Settings


@dataclass(eq=False)
class EngineRoster:
    """The engines by their keys, and those beside them: successors and retired ones."""

    settings: Settings
    clock: Callable[[], float]
    engines: dict[Key, EngineEntry]
    beside: set[EngineEntry] = field(default_factory=set)
    models: dict[str, Model] = field(default_factory=dict)
    """The models whose adapters have changed, by their ids, as they are served now."""

    def __iter__(self) -> Iterator[EngineEntry]:
        yield from (*self.engines.values(), *self.beside)

    def engine(
        self, resolved: ResolvedModel, role: Role, needs: Sequence[Adapter] | None = None
    ) -> EngineEntry:
        """The engine for a request, loaded or not; created if it is new.

        needs: the adapters that the request uses; None for those of its model's name.
        """
        key = key_of(resolved, role)
        needs = resolved.needs if needs is None else needs
        model = self.models.get(resolved.base, resolved.model)
        found = self.engines.get(key)
        if not holds(model.adapters, needs):
            if found is not None and found.is_loaded and found.has(needs):
                return found  # its successor is still being loaded
            return self.left_over(key, resolved.model, needs)
        if found is None:
            found = self.engines[key] = self.new(key, model)
        if not isinstance(found.phase, Loaded | Loading):  # it will start with all adapters
            return found.successor or found
        return found if found.has(needs) else self.successor_of(found)

    def new(self, key: Key, model: Model) -> EngineEntry:
        slots, takes_turns = self.settings.parallel or 1, key.role == "generate"
        queue = RequestQueue(slots, self.settings, self.clock, takes_turns)
        return EngineEntry(key, model_for(key, model), queue)

    def left_over(self, key: Key, model: Model, needs: Sequence[Adapter]) -> EngineEntry:
        """An engine for a request that came before its adapter was removed."""
        for engine in self.beside:
            is_answering = engine.is_retired and not engine.is_ending
            if is_answering and engine.key == key and engine.has(needs):
                return engine
        engine = self.new(key, model)
        engine.is_retired = True
        self.beside.add(engine)
        return engine

    def successor_of(self, engine: EngineEntry) -> EngineEntry:
        """The engine that is to take the place of another; created if it is new."""
        if engine.successor is None:
            engine.successor = self.new(engine.key, self.models.get(engine.key.base, engine.model))
            self.beside.add(engine.successor)
        return engine.successor

    def predecessor_of(self, engine: EngineEntry) -> EngineEntry | None:
        """The engine whose place this one is to take."""
        present = self.engines.get(engine.key)
        return present if present is not None and present.successor is engine else None

    def refresh(self, engine: EngineEntry) -> None:
        """Give an engine that is about to load the adapters that are served now."""
        model = self.models.get(engine.key.base)
        if model is None or engine.is_retired or engine.key.role not in SAYING:
            return
        engine.model = replace(model, is_handed_over=engine.model.is_handed_over)

    def is_outdated(self, engine: EngineEntry) -> bool:
        """Whether the adapters that are served differ from those of a shared engine."""
        model = self.models.get(engine.key.base)
        is_shared = engine.key.role in SAYING and not engine.is_retired
        return is_shared and model is not None and model.adapters != engine.model.adapters

    def holds_removed(self, engine: EngineEntry) -> bool:
        """Whether an engine has an adapter that is no longer served."""
        model = self.models.get(engine.key.base)
        return model is not None and not set(engine.model.adapters) <= set(model.adapters)

    def take_over(self, engine: EngineEntry) -> EngineEntry | None:
        """Put a successor in its predecessor's place; returns the retired predecessor."""
        old = self.predecessor_of(engine)
        if old is None:
            return None
        self.beside.discard(engine)
        self.engines[engine.key] = engine
        engine.restarts += old.restarts
        engine.queue.switches += old.queue.switches
        old.successor = None
        self.retire(old)
        return old

    def retire(self, engine: EngineEntry) -> None:
        engine.is_retired = True
        self.beside.add(engine)

    def remove_unserved(self, base: str) -> list[EngineEntry]:
        """Retire the engines whose scales name an adapter that is no longer served."""
        gone = [
            engine
            for engine in self.engines.values()
            if engine.key.base == base and engine.key.adapters and self.holds_removed(engine)
        ]
        for engine in gone:
            del self.engines[engine.key]
            self.retire(engine)
        return gone

    def leaving(self) -> list[EngineEntry]:
        """The retired engines whose processes have yet to end."""
        return [one for one in self.beside if one.is_retired and (one.server or one.is_ending)]
