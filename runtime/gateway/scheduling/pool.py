"""The pool of engines: each starts on its first request, stops when idle, restarts when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from exporter.core.errors import (
    DecantError,
    EngineDiedError,
    ModelError,
    SpaceError,
    TemplateRefusedError,
)
from exporter.core.events import Event, Note, Progress, Report, Step, Warn, silent
from exporter.llamacpp.toolchain import Toolchain
from runtime.engine.llama_server import DYING_S, Server
from runtime.engine.own_template import template_refused
from runtime.engine.request_texts import Fronts, front_of, template_notes, unlike
from runtime.gateway.api_errors import ApiError, unavailable
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.scheduling.adapter_watch import AdapterFiles
from runtime.gateway.scheduling.engine_entry import CrowdedError, EngineEntry, as_reason, key_of
from runtime.gateway.scheduling.engine_phase import Failed, Loaded, Loading, Unloaded
from runtime.gateway.scheduling.health import until_unwell
from runtime.gateway.scheduling.model_watch import ModelFiles
from runtime.gateway.scheduling.placement import TALKLESS, Key, Plan, Role, Room, plan_engine
from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.scheduling.upstream import address_of
from runtime.gateway.settings import Settings
from runtime.rpc.protocol import WorkerFacts, preflight

WATCH_S = 0.1  # between two checks that a process runs
HEALTHY_S = 10  # an engine that ran this long is not in a crash loop
PATIENCE_S = 5  # the longest wait for a restart; beyond it a request gets 503
STARTS_MAX = 64  # threads; each waits until one engine is ready
Result = TypeVar("Result")


@dataclass(eq=False)
class EnginePool:
    """All engines. Only loading runs in threads, all else on the event loop."""

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

    def __post_init__(self) -> None:
        self.adapter_files, self.model_files = AdapterFiles(self.report), ModelFiles(self.report)

    def engine(self, resolved: ResolvedModel, role: Role = "generate") -> EngineEntry:
        """The engine of a model, loaded or not; created if it is new."""
        key = key_of(resolved, role)
        if key not in self.engines:
            queue = RequestQueue(self.settings.parallel or 1, self.settings, self.clock)
            self.engines[key] = EngineEntry(key, resolved.model, queue)
        return self.engines[key]

    @asynccontextmanager
    async def using(
        self, resolved: ResolvedModel, role: Role = "generate"
    ) -> AsyncIterator[EngineEntry]:
        """The model's engine, which stays loaded inside the block. Raises ApiError."""
        engine = self.engine(resolved, role)
        engine.users += 1
        try:
            await self.ensure_loaded(engine)
            yield engine
        finally:
            engine.users -= 1
            engine.last_used = self.clock()

    async def ensure_loaded(self, engine: EngineEntry) -> None:
        """Wait until the engine is loaded; many requests share one load. Raises ApiError."""
        while not engine.is_loaded:
            if self.is_closed:
                raise unavailable("the server is shutting down", retry_after=5)
            failed = engine.phase
            if isinstance(failed, Failed) and failed.wait_s(self.clock()) > PATIENCE_S:
                raise self.failure(engine, failed)
            if engine.starting is None:
                engine.starting = self.spawn(self.start(engine))
            await asyncio.wait({engine.starting})
            if isinstance(failed := engine.phase, Failed):
                raise self.failure(engine, failed)

    def failure(self, engine: EngineEntry, failed: Failed) -> ApiError:
        """The error for requests that wait for an engine that cannot be loaded."""
        why = failed.error.message.splitlines()[0]
        path = str(engine.model.header.path)
        message = why.replace(f"`{path}`", engine.name).replace(path, engine.name)
        return unavailable(
            f"{engine.name!r} cannot be loaded: {message}",
            retry_after=int(failed.wait_s(self.clock())) + 1,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task, and keep a reference to the task."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def start(self, engine: EngineEntry) -> None:
        """Load the engine after its backoff. An error of loading is kept in its phase."""
        if isinstance(failed := engine.phase, Failed):
            await asyncio.sleep(failed.wait_s(self.clock()))
        error = await self.try_load(engine)
        if isinstance(error, TemplateRefusedError):
            self.report(Warn(template_refused(engine.name, error)))
            engine.model = replace(engine.model, is_handed_over=True)
            error = await self.try_load(engine)
        engine.starting = None
        if error is not None:
            engine.queue.refuse_all(self.failure(engine, self.fail(engine, as_reason(error))))
        elif isinstance(engine.phase, Loading):  # every request for it has left
            engine.phase = Unloaded()

    async def try_load(self, engine: EngineEntry) -> BaseException | None:
        """The exception that loading raises, of any type; None when it succeeds."""
        loading = engine.phase = Loading()
        attempt = self.spawn(self.load(engine, loading))
        await asyncio.wait({attempt})
        return attempt.exception()

    async def load(self, engine: EngineEntry, loading: Loading) -> None:
        """Load the engine, unless all requests for it have left.

        Raises ModelError for an adapter that cannot be used, and whatever else loading raises.
        """
        began = self.clock()
        engine.model = await self.in_thread(self.model_files.checked, engine.model)
        await self.in_thread(getattr, engine.model, "chat")  # parsing may be slow
        engine.out = await self.in_thread(self.adapter_files.checked, engine.model)
        if why := engine.missing(engine.key.lora_scales):
            raise ModelError(why, hint="repair its file: it is checked again at the next request")
        server = await self.server_for(engine, loading)
        if server is None:
            return
        self.report(Step(f"loading {engine.name}"))
        engine.fronts = await self.in_thread(fronts_of, engine)
        await self.in_thread(server.__enter__)
        await self.compare(engine, server)
        engine.queue.capacity = server.spec.parallel
        engine.phase = Loaded(server, address_of(server))
        engine.began = engine.last_used = self.clock()
        engine.load_s = engine.began - began
        if self.is_closed:
            await self.stop(engine)
            return
        self.report(Step(f"{engine.name} is loaded ({engine.load_s:.1f} s)"))
        self.spawn(self.watch(engine, server))
        engine.queue.open()

    async def server_for(self, engine: EngineEntry, loading: Loading) -> Server | None:
        """The engine's process, its memory reserved; None when no request waits for it.

        One engine at a time is planned; engines that are starting keep their reservation.
        """

        def note_progress(event: Event) -> None:
            if isinstance(event, Progress) and event.total:
                loading.progress = event.done / event.total

        while True:
            async with self.planning:
                if self.is_closed or not engine.users:
                    return None
                wait_s = await self.limit_chosen_scales(engine)
                plan = await self.room_for(engine) if not wait_s else None
                if plan is not None:
                    engine.nbytes, engine.context = plan.fit.need.total, plan.spec.context
                    engine.text_max = plan.text_max
                    for warning in plan.fit.warnings():
                        self.report(Warn(f"{engine.name}: {warning}"))
                    spec = replace(plan.spec, niceness=engine.niceness)
                    loading.server = Server(spec, self.toolchain, report=note_progress)
                    return loading.server
            await (asyncio.sleep(wait_s) if wait_s else self.wait_for_a_start())

    async def wait_for_a_start(self) -> None:
        """Wait until one starting engine has taken its memory, or has released it."""
        starts = {one.starting for one in self.engines.values() if one.reserved and one.starting}
        if starts:
            await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of `work`, run in a thread because it may block."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

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

    async def compare(self, engine: EngineEntry, server: Server) -> None:
        """At the first load, report conversations whose prompt differs from transformers'."""
        if engine.load_s or engine.key.role in TALKLESS or engine.is_chosen:
            return  # other scales change no prompt

        def compared() -> list[str]:
            found = [f"{engine.name}: {note}" for note in unlike(server, server.spec.chat)]
            for adapter, own in zip(engine.model.adapters, engine.model.own, strict=True):
                label = f"{engine.name}:{adapter.name}"
                found += [f"{label}: {note}" for note in template_notes(server, own)]
            return found

        for note in await self.in_thread(compared):
            self.report(Note(note))

    async def room_for(self, engine: EngineEntry) -> Plan | None:
        """The plan of the engine; None when other engines must finish starting first.

        Unloads idle engines, least recently used first, until it fits. Raises SpaceError.
        """
        while True:
            workers = await self.workers_for(engine)
            reserved = sum(one.reserved for one in self.engines.values())
            others = [one for one in self.engines.values() if one.is_idle and one is not engine]
            oldest = min(others, key=lambda one: one.last_used, default=None)
            room = Room(self.toolchain, workers, reserved)
            planned = engine.engine_key, engine.engine_model
            try:
                plan = await self.in_thread(plan_engine, *planned, self.settings, room)
            except SpaceError:
                if oldest is None and reserved:
                    return None
                if oldest is None:
                    raise
            else:
                if not plan.is_short:
                    return plan
                if oldest is None:
                    return None if reserved else plan
            self.report(Step(f"unloading {oldest.name}: its memory is needed"))
            await self.stop(oldest)

    async def workers_for(self, engine: EngineEntry) -> Sequence[WorkerFacts]:
        """The workers' present state; encoder-decoders and scoring use no workers."""
        rpc = self.settings.rpc
        if rpc is None or engine.model.is_encoder_decoder or engine.key.role == "score":
            return ()
        return await self.in_thread(preflight, rpc, self.toolchain)

    def fail(self, engine: EngineEntry, error: DecantError) -> Failed:
        """Record why the engine failed, and when it may start again."""
        self.report(Warn(f"{engine.name}: {error.message}"))
        return engine.fail(error, self.clock())

    async def watch(self, engine: EngineEntry, server: Server) -> None:
        """Watch the process and its health; restart an engine that dies or hangs while in use."""
        watching_health = self.spawn(self.watch_health(engine, server))
        try:
            await self.watch_process(engine, server)
        finally:
            watching_health.cancel()

    async def watch_process(self, engine: EngineEntry, server: Server) -> None:
        """Return when the process has died, or has been replaced by another."""
        while engine.is_loaded and engine.server is server:
            try:
                server.raise_if_gone()
            except EngineDiedError as error:
                await self.handle_death(engine, server, error)
                return
            except DecantError:
                return
            await asyncio.sleep(WATCH_S)

    async def watch_health(self, engine: EngineEntry, server: Server) -> None:
        """Restart an engine whose process runs but fails its health check."""
        if why := await until_unwell(engine, server, self.settings.health_s):
            self.spawn(self.renew(engine, server, why))

    async def renew(self, engine: EngineEntry, server: Server | None, why: str) -> None:
        """Replace a process that is of no use any more, unless another has taken its place."""
        if server is not None:
            error = EngineDiedError(why, hint="it is restarted")
            await self.handle_death(engine, server, error)

    async def restart(self, engine: EngineEntry) -> None:
        """Wait until an engine that could not be reached is loaded again. Raises ApiError."""
        await self.wait_for_exit(engine)
        await self.ensure_loaded(engine)

    async def wait_for_exit(self, engine: EngineEntry) -> None:
        """Wait for the process's exit before requests go to the engine again."""
        server = engine.server
        if server is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(None, wait_for_end, server)
            except EngineDiedError as error:
                await self.handle_death(engine, server, error)

    async def handle_death(
        self, engine: EngineEntry, server: Server, error: EngineDiedError
    ) -> None:
        """Record that the process has ended, and start another if requests use the engine."""
        if engine.server is not server:  # another task has handled it
            return
        if self.clock() - engine.began > HEALTHY_S:
            engine.crashes = 0
        engine.queue.close()
        was_wanted = bool(engine.users)
        failed = self.fail(engine, error)
        if failed.wait_s(self.clock()) > PATIENCE_S:  # else the queue waits on
            engine.queue.refuse_all(self.failure(engine, failed))
        await asyncio.get_running_loop().run_in_executor(None, server.stop)
        engine.restarts += 1
        if was_wanted and not self.is_closed and engine.starting is None:
            engine.starting = self.spawn(self.start(engine))

    async def stop(self, engine: EngineEntry) -> None:
        """Unload the engine; the next request loads it again."""
        server = engine.server
        engine.phase = Unloaded()
        engine.queue.close()
        if server is not None:
            await asyncio.get_running_loop().run_in_executor(None, server.stop)

    async def unload_idle(self) -> None:
        """Unload engines that are idle for longer than the time limit; runs until cancelled."""
        ttl_s = self.settings.ttl_s
        while ttl_s:
            await asyncio.sleep(min(1.0, ttl_s / 4))
            for engine in list(self.engines.values()):
                if engine.is_idle and self.clock() - engine.last_used > ttl_s:
                    self.report(Step(f"unloading {engine.name}: idle for {ttl_s:g} s"))
                    await self.stop(engine)

    def kill(self) -> None:
        """Kill all processes at once."""
        self.is_closed = True
        for engine in self.engines.values():
            if engine.server is not None and engine.server.process is not None:
                engine.server.process.kill()
                engine.server.stop()

    async def close(self) -> None:
        """Stop all engines, and those that are starting."""
        self.is_closed = True
        for engine in self.engines.values():
            if isinstance(engine.phase, Loading):
                if engine.server is not None and engine.server.process is not None:
                    with suppress(ProcessLookupError):
                        engine.server.process.terminate()
            elif engine.starting is not None:  # it waits for its backoff
                engine.starting.cancel()
        await asyncio.gather(*(self.stop(one) for one in self.engines.values() if one.is_loaded))
        if self.tasks:  # they load, watch, handle deaths or cancel requests
            await asyncio.wait(self.tasks, timeout=5)


def fronts_of(engine: EngineEntry) -> Fronts:
    """The preparation of requests to an engine; roles without conversations have no template."""
    has_chats = engine.key.role not in TALKLESS
    return engine.model.fronts if has_chats else Fronts(front_of(engine.model.header))


def wait_for_end(server: Server) -> None:
    """Wait for a process that broke off a request. Raises EngineDiedError when it has ended."""
    server.raise_if_dead("while answering with", wait_s=DYING_S)
    server.raise_if_gone()
