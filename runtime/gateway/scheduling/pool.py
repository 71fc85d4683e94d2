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
from runtime.gateway.catalog import Named
from runtime.gateway.scheduling.adapter_watch import AdapterFiles
from runtime.gateway.scheduling.engine_entry import Child, CrowdedError, as_reason, key_of
from runtime.gateway.scheduling.engine_phase import Failed, Loaded, Loading, Unloaded
from runtime.gateway.scheduling.placement import TALKLESS, Key, Plan, Role, Room, plan_engine
from runtime.gateway.scheduling.request_queue import Gate
from runtime.gateway.scheduling.upstream import address_of, is_well
from runtime.gateway.settings import Settings
from runtime.rpc.protocol import WorkerFacts, preflight

WATCH_S = 0.1  # between two checks that a process runs
HEALTHY_S = 10  # an engine that ran this long is not in a crash loop
PATIENCE_S = 5  # the longest wait for a restart; beyond it a request gets 503
STARTS_MAX = 64  # threads; each waits until one engine is ready
Result = TypeVar("Result")


@dataclass(eq=False)
class Fleet:
    """All engines. Only loading runs in threads, all else on the event loop."""

    settings: Settings
    toolchain: Toolchain
    report: Report = silent
    clock: Callable[[], float] = time.monotonic
    children: dict[Key, Child] = field(default_factory=dict)
    planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    threads: Executor = field(default_factory=lambda: ThreadPoolExecutor(STARTS_MAX, "start"))
    """Runs starts, which may hang; its threads live as long as the pool."""
    is_closed: bool = False
    adapter_files: AdapterFiles = field(init=False)

    def __post_init__(self) -> None:
        self.adapter_files = AdapterFiles(self.report)

    def child(self, named: Named, role: Role = "generate") -> Child:
        """The engine of a model, loaded or not; created if it is new."""
        key = key_of(named, role)
        if key not in self.children:
            gate = Gate(self.settings.parallel or 1, self.settings, self.clock)
            self.children[key] = Child(key, named.model, gate)
        return self.children[key]

    @asynccontextmanager
    async def using(self, named: Named, role: Role = "generate") -> AsyncIterator[Child]:
        """The model's engine, which stays loaded inside the block. Raises ApiError."""
        child = self.child(named, role)
        child.users += 1
        try:
            await self.ensure_loaded(child)
            yield child
        finally:
            child.users -= 1
            child.last_used = self.clock()

    async def ensure_loaded(self, child: Child) -> None:
        """Wait until the engine is loaded; many requests share one load. Raises ApiError."""
        while not child.is_loaded:
            if self.is_closed:
                raise unavailable("the server is shutting down", retry_after=5)
            failed = child.phase
            if isinstance(failed, Failed) and failed.wait_s(self.clock()) > PATIENCE_S:
                raise self.failure(child, failed)
            if child.starting is None:
                child.starting = self.spawn(self.start(child))
            await asyncio.wait({child.starting})
            if isinstance(failed := child.phase, Failed):
                raise self.failure(child, failed)

    def failure(self, child: Child, failed: Failed) -> ApiError:
        """The error for requests that wait for an engine that cannot be loaded."""
        why = failed.error.message.splitlines()[0]
        path = str(child.model.header.path)
        message = why.replace(f"`{path}`", child.name).replace(path, child.name)
        return unavailable(
            f"{child.name!r} cannot be loaded: {message}",
            retry_after=int(failed.wait_s(self.clock())) + 1,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task, and keep a reference to the task."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def start(self, child: Child) -> None:
        """Load the engine after its backoff. An error of loading is kept in its phase."""
        if isinstance(failed := child.phase, Failed):
            await asyncio.sleep(failed.wait_s(self.clock()))
        error = await self.try_load(child)
        if isinstance(error, TemplateRefusedError):
            self.report(Warn(template_refused(child.name, error)))
            child.model = replace(child.model, is_handed_over=True)
            error = await self.try_load(child)
        child.starting = None
        if error is not None:
            child.gate.refuse_all(self.failure(child, self.fail(child, as_reason(error))))
        elif isinstance(child.phase, Loading):  # every request for it has left
            child.phase = Unloaded()

    async def try_load(self, child: Child) -> BaseException | None:
        """The exception that loading raises, of any type; None when it succeeds."""
        loading = child.phase = Loading()
        attempt = self.spawn(self.load(child, loading))
        await asyncio.wait({attempt})
        return attempt.exception()

    async def load(self, child: Child, loading: Loading) -> None:
        """Load the engine, unless all requests for it have left.

        Raises ModelError for an adapter that cannot be used, and whatever else loading raises.
        """
        began = self.clock()
        await self.in_thread(getattr, child.model, "chat")  # parses the template, which may be slow
        child.out = await self.in_thread(self.adapter_files.checked, child.model)
        if why := child.missing(child.key.voice):
            raise ModelError(why, hint="repair its file: it is checked again at the next request")
        server = await self.server_for(child, loading)
        if server is None:
            return
        self.report(Step(f"loading {child.name}"))
        child.fronts = await self.in_thread(fronts_of, child)
        await self.in_thread(server.__enter__)
        await self.compare(child, server)
        child.gate.capacity = server.spec.parallel
        child.phase = Loaded(server, address_of(server))
        child.began = child.last_used = self.clock()
        child.load_s = child.began - began
        if self.is_closed:
            await self.stop(child)
            return
        self.report(Step(f"{child.name} is loaded ({child.load_s:.1f} s)"))
        self.spawn(self.watch(child, server))
        child.gate.open()

    async def server_for(self, child: Child, loading: Loading) -> Server | None:
        """The engine's process, its memory reserved; None when no request waits for it.

        One engine at a time is planned; engines that are starting keep their reservation.
        """

        def note_progress(event: Event) -> None:
            if isinstance(event, Progress) and event.total:
                loading.progress = event.done / event.total

        while True:
            async with self.planning:
                if self.is_closed or not child.users:
                    return None
                wait_s = await self.limit_chosen_scales(child)
                plan = await self.room_for(child) if not wait_s else None
                if plan is not None:
                    child.nbytes, child.context = plan.fit.need.total, plan.spec.context
                    child.text_max = plan.text_max
                    for warning in plan.fit.warnings():
                        self.report(Warn(f"{child.name}: {warning}"))
                    spec = replace(plan.spec, niceness=child.niceness)
                    loading.server = Server(spec, self.toolchain, report=note_progress)
                    return loading.server
            await (asyncio.sleep(wait_s) if wait_s else self.wait_for_a_start())

    async def wait_for_a_start(self) -> None:
        """Wait until one starting engine has taken its memory, or has released it."""
        starts = {one.starting for one in self.children.values() if one.reserved and one.starting}
        if starts:
            await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of `work`, run in a thread because it may block."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, work, *arguments)

    async def limit_chosen_scales(self, child: Child) -> float:
        """Evict the least recently used engines with client-chosen scales, to fit one more.

        Keeps engines that were loaded within `chosen_s`, because a start takes the processor from
        others. Returns the seconds after which to try again; 0 when there is room, and for other
        engines. Raises CrowdedError when all of them are in use.
        """
        if not child.is_chosen:
            return 0.0
        others = [one for one in self.children.values() if one.is_chosen and one is not child]
        unused = [one for one in others if not one.users and one.starting is None]
        most, since = self.settings.limits.scales - 1, self.clock() - self.settings.chosen_s
        young = [one for one in unused if one.server and one.began > since]
        old = sorted((one for one in unused if one not in young), key=lambda one: one.last_used)
        for one in old[: max(0, len(others) - most)]:
            others.remove(one)
            del self.children[one.key]
            await self.stop(one)
        if sum(one.server is not None for one in others) <= most:
            return 0.0
        if young:
            return min(one.began for one in young) - since + WATCH_S
        raise CrowdedError(
            f"{most + 1} engines with client-chosen scales are in use already",
            hint="--limit scales=N allows more",
        )

    async def compare(self, child: Child, server: Server) -> None:
        """At the first load, report conversations whose prompt differs from transformers'."""
        if child.load_s or child.key.role in TALKLESS or child.is_chosen:
            return  # other scales change no prompt

        def compared() -> list[str]:
            found = [f"{child.name}: {note}" for note in unlike(server, server.spec.chat)]
            for adapter, own in zip(child.model.adapters, child.model.own, strict=True):
                found += [
                    f"{child.name}:{adapter.name}: {note}" for note in template_notes(server, own)
                ]
            return found

        for note in await self.in_thread(compared):
            self.report(Note(note))

    async def room_for(self, child: Child) -> Plan | None:
        """The plan of the engine; None when other engines must finish starting first.

        Unloads idle engines, least recently used first, until it fits. Raises SpaceError.
        """
        while True:
            workers = await self.workers_for(child)
            reserved = sum(one.reserved for one in self.children.values())
            others = [one for one in self.children.values() if one.is_idle and one is not child]
            oldest = min(others, key=lambda one: one.last_used, default=None)
            room = Room(self.toolchain, workers, reserved)
            engine = child.engine_key, child.engine_model
            try:
                plan = await self.in_thread(plan_engine, *engine, self.settings, room)
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

    async def workers_for(self, child: Child) -> Sequence[WorkerFacts]:
        """The workers' present state; encoder-decoders and scoring use no workers."""
        rpc = self.settings.rpc
        if rpc is None or child.model.is_encoder_decoder or child.key.role == "score":
            return ()
        return await self.in_thread(preflight, rpc, self.toolchain)

    def fail(self, child: Child, error: DecantError) -> Failed:
        """Record why the engine failed, and when it may start again."""
        self.report(Warn(f"{child.name}: {error.message}"))
        return child.fail(error, self.clock())

    async def watch(self, child: Child, server: Server) -> None:
        """Watch the process and its health; restart an engine that dies or hangs while in use."""
        watching_health = self.spawn(self.watch_health(child, server))
        try:
            await self.watch_process(child, server)
        finally:
            watching_health.cancel()

    async def watch_process(self, child: Child, server: Server) -> None:
        """Return when the process has died, or has been replaced by another."""
        while child.is_loaded and child.server is server:
            try:
                server.raise_if_gone()
            except EngineDiedError as error:
                await self.handle_death(child, server, error)
                return
            except DecantError:
                return
            await asyncio.sleep(WATCH_S)

    async def watch_health(self, child: Child, server: Server) -> None:
        """Restart an engine whose process runs but fails its health check."""
        limit_s = self.settings.health_s
        while limit_s and child.server is server and child.address is not None:
            if not await is_well(child.address, limit_s):
                why = f"it has not answered a health check for {limit_s:g} s"
                self.spawn(self.renew(child, server, why))
                return
            await asyncio.sleep(limit_s / 4)

    async def renew(self, child: Child, server: Server | None, why: str) -> None:
        """Replace a process that is of no use any more, unless another has taken its place."""
        if server is not None:
            error = EngineDiedError(why, hint="it is restarted")
            await self.handle_death(child, server, error)

    async def restart(self, child: Child) -> None:
        """Wait until an engine that could not be reached is loaded again. Raises ApiError."""
        await self.wait_for_exit(child)
        await self.ensure_loaded(child)

    async def wait_for_exit(self, child: Child) -> None:
        """Wait for the process's exit before requests go to the engine again."""
        server = child.server
        if server is not None:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, wait_for_end, server)
            except EngineDiedError as error:
                await self.handle_death(child, server, error)

    async def handle_death(self, child: Child, server: Server, error: EngineDiedError) -> None:
        """Record that the process has ended, and start another if requests use the engine."""
        if child.server is not server:  # another task has handled it
            return
        if self.clock() - child.began > HEALTHY_S:
            child.crashes = 0
        child.gate.close()
        was_wanted = bool(child.users)
        failed = self.fail(child, error)
        if failed.wait_s(self.clock()) > PATIENCE_S:  # else the queue waits on
            child.gate.refuse_all(self.failure(child, failed))
        await asyncio.get_running_loop().run_in_executor(None, server.stop)
        child.restarts += 1
        if was_wanted and not self.is_closed and child.starting is None:
            child.starting = self.spawn(self.start(child))

    async def stop(self, child: Child) -> None:
        """Unload the engine; the next request loads it again."""
        server = child.server
        child.phase = Unloaded()
        child.gate.close()
        if server is not None:
            await asyncio.get_running_loop().run_in_executor(None, server.stop)

    async def unload_idle(self) -> None:
        """Unload engines that are idle for longer than the time limit; runs until cancelled."""
        ttl_s = self.settings.ttl_s
        while ttl_s:
            await asyncio.sleep(min(1.0, ttl_s / 4))
            for child in list(self.children.values()):
                if child.is_idle and self.clock() - child.last_used > ttl_s:
                    self.report(Step(f"unloading {child.name}: idle for {ttl_s:g} s"))
                    await self.stop(child)

    def kill(self) -> None:
        """Kill all processes at once."""
        self.is_closed = True
        for child in self.children.values():
            if child.server is not None and child.server.process is not None:
                child.server.process.kill()
                child.server.stop()

    async def close(self) -> None:
        """Stop all engines, and those that are starting."""
        self.is_closed = True
        for child in self.children.values():
            if isinstance(child.phase, Loading):
                if child.server is not None and child.server.process is not None:
                    with suppress(ProcessLookupError):
                        child.server.process.terminate()
            elif child.starting is not None:  # it waits for its backoff
                child.starting.cancel()
        await asyncio.gather(*(self.stop(c) for c in self.children.values() if c.is_loaded))
        if self.tasks:  # they load, watch, handle deaths or cancel requests
            await asyncio.wait(self.tasks, timeout=5)


def fronts_of(child: Child) -> Fronts:
    """The preparation of requests to an engine; roles without conversations have no template."""
    has_chats = child.key.role not in TALKLESS
    return child.model.fronts if has_chats else Fronts(front_of(child.model.header))


def wait_for_end(server: Server) -> None:
    """Wait for a process that broke off a request. Raises EngineDiedError when it has ended."""
    server.raise_if_dead("while answering with", wait_s=DYING_S)
    server.raise_if_gone()
