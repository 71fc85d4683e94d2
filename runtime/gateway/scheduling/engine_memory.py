"""The memory of all engines: which engine may start, and which ones make room for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from exporter.core.errors import SpaceError
from exporter.core.events import Report, Step, silent
from exporter.llamacpp.toolchain import Toolchain
from runtime.gateway.scheduling.adapter_watch import AdapterFiles
from runtime.gateway.scheduling.engine_entry import CrowdedError, EngineEntry
from runtime.gateway.scheduling.engine_phase import Unloaded
from runtime.gateway.scheduling.engine_roster import EngineRoster
from runtime.gateway.scheduling.engine_watch import WATCH_S
from runtime.gateway.scheduling.model_watch import ModelFiles
from runtime.gateway.scheduling.placement import Key, Plan, Room, plan_engine
from runtime.gateway.settings import Settings
from runtime.rpc.protocol import WorkerFacts, preflight

STARTS_MAX = 64  # threads; each waits until one engine is ready
Result = TypeVar("Result")


@dataclass(eq=False)
class EngineMemory:
    """All engines, and the memory that they take. Only loading runs in threads."""

    settings: Settings
    toolchain: Toolchain
    report: Report = silent
    clock: Callable[[], float] = time.monotonic
    engines: dict[Key, EngineEntry] = field(default_factory=dict)
    planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    threads: Executor = field(default_factory=lambda: ThreadPoolExecutor(STARTS_MAX, "start"))
    """Runs starts, which may hang; its threads live as long as the pool."""
    is_closed: bool = False
    adapter_files: AdapterFiles = field(init=False)
    model_files: ModelFiles = field(init=False)
    roster: EngineRoster = field(init=False)

    def __post_init__(self) -> None:
        self.adapter_files, self.model_files = AdapterFiles(self.report), ModelFiles(self.report)
        self.roster = EngineRoster(self.settings, self.clock, self.engines)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task, and keep a reference to the task."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of `work`, run in a thread because it may block."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    async def room_for(self, engine: EngineEntry) -> Plan | None:
        """The plan of the engine; None when other engines must finish starting first.

        Unloads idle engines, least recently used first, until it fits. Raises SpaceError.
        """
        while True:
            workers = await self.workers_for(engine)
            reserved = sum(one.reserved for one in self.roster)
            was_leaving = self.leaves_soon(engine)
            others = [one for one in self.engines.values() if one.is_idle and one is not engine]
            oldest = min(others, key=lambda one: one.last_used, default=None)
            room = Room(self.toolchain, workers, reserved)
            planned = engine.engine_key, engine.engine_model
            try:
                plan = await self.in_thread(plan_engine, *planned, self.settings, room)
            except SpaceError:
                if oldest is None and (reserved or was_leaving or self.retire_for(engine)):
                    return None
                if oldest is None:
                    raise
            else:
                if not plan.is_short:
                    return plan
                if oldest is None:
                    return None if reserved or was_leaving or self.retire_for(engine) else plan
            self.report(Step(f"unloading {oldest.name}: its memory is needed"))
            await self.stop(oldest, is_saving=True)

    def leaves_soon(self, engine: EngineEntry) -> bool:
        """Whether a retired engine will release memory for this one."""
        return any(one is not engine for one in self.roster.leaving())

    def retire_for(self, engine: EngineEntry) -> bool:
        """Put the engine in its predecessor's place; returns whether that will release memory."""
        self.put_in_place(engine)
        return self.leaves_soon(engine)

    def put_in_place(self, engine: EngineEntry) -> None:
        """Put a successor in its predecessor's place; the latter ends after its last request."""
        if (old := self.roster.take_over(engine)) is not None:
            self.dismiss_if_done(old)

    async def workers_for(self, engine: EngineEntry) -> Sequence[WorkerFacts]:
        """The workers' present state; encoder-decoders and scoring use no workers."""
        rpc = self.settings.rpc
        if rpc is None or engine.model.is_encoder_decoder or engine.key.role == "score":
            return ()
        return await self.in_thread(preflight, rpc, self.toolchain)

    async def limit_chosen_scales(self, engine: EngineEntry) -> float:
        """Evict the least recently used engines with client-chosen scales, to fit one more.

        Keeps engines that were loaded within `chosen_s`, because a start takes the processor from
        others. Returns the seconds after which to try again; 0 when there is room, and for other
        engines. Raises CrowdedError when all of them are in use.
        """
        if not engine.is_chosen:
            return 0.0
        others = [one for one in self.engines.values() if one.is_chosen and one is not engine]
        unused = [one for one in others if not one.users and one.starting is None]
        most, since = self.settings.limits.scales - 1, self.clock() - self.settings.chosen_s
        young = [one for one in unused if one.server and one.began > since]
        old = sorted((one for one in unused if one not in young), key=lambda one: one.last_used)
        for one in old[: max(0, len(others) - most)]:
            others.remove(one)
            del self.engines[one.key]
            await self.stop(one)
        if sum(one.server is not None for one in others) <= most:
            return 0.0
        if young:
            return min(one.began for one in young) - since + WATCH_S
        raise CrowdedError(
            f"{most + 1} engines with client-chosen scales are in use already",
            hint="--limit scales=N allows more",
        )

    async def wait_for_memory(self) -> None:
        """Wait until a starting engine has taken its memory, or a retired one has ended."""
        starts = {one.starting for one in self.roster if one.reserved and one.starting}
        if starts:
            timeout_s = WATCH_S if self.roster.leaving() else None
            await asyncio.wait(starts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(WATCH_S)

    def dismiss_if_done(self, engine: EngineEntry) -> None:
        """Stop a retired engine after its last request."""
        if engine.is_retired and not engine.users and not engine.is_ending:
            engine.is_ending = True
            self.spawn(self.dismiss(engine))

    async def dismiss(self, engine: EngineEntry) -> None:
        """Stop a retired engine; the one in its place takes its prompts over."""
        try:
            await self.stop(engine, is_saving=True)
        finally:
            self.roster.beside.discard(engine)
        heir = self.engines.get(engine.key)
        if heir is not None and heir.is_loaded and heir.server is not None:
            await self.in_thread(heir.server.restore)

    async def stop(self, engine: EngineEntry, *, is_saving: bool = False) -> None:
        """Unload the engine; the next request loads it again.

        is_saving: whether its prompts are kept for then.
        """
        server = engine.server
        engine.phase = Unloaded()
        engine.queue.close()
        if server is not None:
            is_saving = is_saving and not engine.users and not engine.is_chosen
            stop = partial(server.stop, is_saving=is_saving)
            await asyncio.get_running_loop().run_in_executor(None, stop)
