"""The phases of an engine's life, one at a time, each with the values that only it has.

    Unloaded -> Loading            a request asks for the model
    Loading  -> Loaded             the process answers
    Loading  -> Failed             planning, starting or reading its file fails
    Loading  -> Unloaded           all requests for it have left
    Loaded   -> Unloaded           it is idle, or its memory is needed
    Loaded   -> Failed             the process died, or hangs
    Failed   -> Loading            its backoff is over, and a request asks for it

Only `EnginePool`, `EngineMemory.stop` and `EngineEntry.fail` change an engine's phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from exporter.core.errors import DecantError
from runtime.engine.llama_server import Server
from runtime.gateway.scheduling.upstream import Address

PhaseName = Literal["unloaded", "loading", "loaded", "failed"]
BACKOFF_S = (0.2, 1, 2, 5, 10, 30)
"""Wait before a start, by the number of failures in a row."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """No process runs, and no request asks for one."""

    name: ClassVar[PhaseName] = "unloaded"


@dataclass(slots=True)
class Loading:
    """The engine's memory is being planned, or its process loads the model."""

    server: Server | None = None
    """Set once its memory is reserved."""
    progress: float = 0
    """The part of the file that is loaded, from 0 to 1."""
    name: ClassVar[PhaseName] = "loading"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The process answers."""

    server: Server
    address: Address
    name: ClassVar[PhaseName] = "loaded"


@dataclass(frozen=True, slots=True)
class Failed:
    """Loading failed, or the process died."""

    error: DecantError
    retry_at: float
    """The earliest next start, by the pool's clock."""
    name: ClassVar[PhaseName] = "failed"

    def wait_s(self, now: float) -> float:
        """Seconds until the engine may start again."""
        return max(0.0, self.retry_at - now)


Phase: TypeAlias = Unloaded | Loading | Loaded | Failed
