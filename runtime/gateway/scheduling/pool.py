"""The pool of engines: each starts on its first request, stops when idle, restarts when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from exporter.core.errors import (
    DecantError,
    EngineDiedError,
    ModelError,
    TemplateRefusedError,
)
from exporter.core.events import Event, Note, Progress, Step, Warn
from runtime.engine.adapters import Adapter
from runtime.engine.llama_server import Server
from runtime.engine.opened_model import Model
from runtime.engine.own_template import template_refused
from runtime.gateway.api_errors import ApiError, unavailable
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.scheduling.engine_entry import EngineEntry, as_reason
from runtime.gateway.scheduling.engine_memory import EngineMemory
from runtime.gateway.scheduling.engine_phase import Failed, Loaded, Loading, Unloaded
from runtime.gateway.scheduling.engine_watch import (
    WATCH_S,
    death_of,
    fronts_of,
    prompt_notes,
    wait_for_end,
)
from runtime.gateway.scheduling.health import until_unwell
from runtime.gateway.scheduling.placement import TALKLESS, Role
from runtime.gateway.scheduling.upstream import address_of

HEALTHY_S = 10  # an engine that ran this long is not in a crash loop
PATIENCE_S = 5  # the longest wait for a restart; beyond it a request gets 503
LEAVING_MAX = 3  # retired engines of one model at once; the next start waits for one to end


@dataclass(eq=False)
class EnginePool(EngineMemory):
    """All engines. Only loading runs in threads, all else on the event loop."""

    @asynccontextmanager
    async def using(
        self,
        resolved: ResolvedModel,
        role: Role = "generate",
        needs: Sequence[Adapter] | None = None,
    ) -> AsyncIterator[EngineEntry]:
        """The model's engine, which stays loaded inside the block. Raises ApiError.

        needs: the adapters that the request uses; None for those of its model's name.
        """
        while True:
            async with self.keep(self.roster.engine(resolved, role, needs)) as engine:
                if engine.has(resolved.needs if needs is None else needs):
                    yield engine
                    return

    @asynccontextmanager
    async def keep(self, engine: EngineEntry) -> AsyncIterator[EngineEntry]:
        """An engine, which stays loaded inside the block. Raises ApiError."""
        engine.users += 1
        try:
            await self.ensure_loaded(engine)
            yield engine
        finally:
            engine.users -= 1
            engine.last_used = self.clock()
            self.dismiss_if_done(engine)

    def set_adapters(self, base: str, model: Model) -> None:
        """Serve a base with other adapters from now on; earlier requests keep their adapters.

        An engine that has a removed adapter is replaced at once, in the background; an added
        adapter is loaded at its first request.
        """
        self.roster.models[base] = model
        for engine in self.roster.remove_unserved(base):
            self.dismiss_if_done(engine)
        for engine in list(self.engines.values()):
            if engine.key.base == base and engine.is_loaded and self.roster.holds_removed(engine):
                self.spawn(self.replace(engine))

    async def replace(self, engine: EngineEntry) -> None:
        """Load the successor of an engine, which takes its place."""
        if self.engines.get(engine.key) is not engine:
            return
        with suppress(ApiError):  # the log has the error, and no name leads to the removed adapter
            async with self.keep(self.roster.successor_of(engine)):
                pass

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

    async def start(self, engine: EngineEntry) -> None:
        """Load the engine after its backoff. An error of loading is kept in its phase."""
        if isinstance(failed := engine.phase, Failed):
            await asyncio.sleep(failed.wait_s(self.clock()))
        error = await self.try_load(engine)
        if isinstance(error, TemplateRefusedError):
            self.report(Warn(template_refused(engine.name, error)))
            engine.model = replace(engine.model, is_handed_over=True)
            error = await self.try_load(engine)
        while error is not None and await self.have_adapters_changed(engine):
            error = await self.try_load(engine)
        engine.starting = None
        if error is not None:
            engine.queue.refuse_all(self.failure(engine, self.fail(engine, as_reason(error))))
        elif isinstance(engine.phase, Loading):  # every request for it has left
            engine.phase = Unloaded()

    async def have_adapters_changed(self, engine: EngineEntry) -> bool:
        """Whether an adapter or its file has changed since the start that has failed."""
        is_outdated, before = self.roster.is_outdated(engine), engine.out
        engine.out = await self.in_thread(self.adapter_files.checked, engine.model)
        return is_outdated or engine.out != before

    async def try_load(self, engine: EngineEntry) -> BaseException | None:
        """The exception that loading raises, of any type; None when it succeeds."""
        self.roster.refresh(engine)
        loading = engine.phase = Loading()
        attempt = self.spawn(self.load(engine, loading))
        await asyncio.wait({attempt})
        return attempt.exception()

    async def load(self, engine: EngineEntry, loading: Loading) -> None:
        """Load the engine, unless all requests for it have left.

        Raises ModelError for an adapter that cannot be used, and the errors of loading.
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
        self.take_over(engine)
        self.spawn(self.watch(engine, server))
        engine.queue.open()

    def take_over(self, engine: EngineEntry) -> None:
        """Put a successor in place, and replace it at once if an adapter was removed meanwhile."""
        self.put_in_place(engine)
        if engine.is_loaded and not engine.is_retired and self.roster.holds_removed(engine):
            self.spawn(self.replace(engine))

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
                same = [one for one in self.roster.leaving() if one.key == engine.key]
                if len(same) >= LEAVING_MAX:
                    wait_s = wait_s or WATCH_S
                plan = await self.room_for(engine) if not wait_s else None
                if plan is not None:
                    engine.nbytes, engine.context = plan.fit.need.total, plan.spec.context
                    engine.text_max = plan.text_max
                    for warning in plan.fit.warnings():
                        self.report(Warn(f"{engine.name}: {warning}"))
                    has_place = self.roster.predecessor_of(engine) is None
                    spec = replace(plan.spec, niceness=engine.niceness, is_restoring=has_place)
                    loading.server = Server(spec, self.toolchain, report=note_progress)
                    return loading.server
            await (asyncio.sleep(wait_s) if wait_s else self.wait_for_memory())

    async def compare(self, engine: EngineEntry, server: Server) -> None:
        """At the first load, report conversations whose prompt differs from transformers'."""
        if engine.load_s or engine.key.role in TALKLESS or engine.is_chosen:
            return  # other scales change no prompt
        before = self.roster.predecessor_of(engine)
        known = set(before.model.adapters) if before is not None else None
        for note in await self.in_thread(prompt_notes, engine, server, known):
            self.report(Note(note))

    def fail(self, engine: EngineEntry, error: DecantError) -> Failed:
        """Record why the engine failed, and when it may start again."""
        self.report(Warn(f"{engine.name}: {error.message}"))
        return engine.fail(error, self.clock())

    async def watch(self, engine: EngineEntry, server: Server) -> None:
        """Watch the process and its health; restart an engine that dies or hangs while in use."""
        watching_health = self.spawn(self.watch_health(engine, server))
        try:
            if (error := await death_of(engine, server)) is not None:
                await self.handle_death(engine, server, error)
        finally:
            watching_health.cancel()

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

    async def unload_idle(self) -> None:
        """Unload engines that are idle for longer than the time limit; runs until cancelled."""
        ttl_s = self.settings.ttl_s
        while ttl_s:
            await asyncio.sleep(min(1.0, ttl_s / 4))
            for engine in list(self.engines.values()):
                if engine.is_idle and self.clock() - engine.last_used > ttl_s:
                    self.report(Step(f"unloading {engine.name}: idle for {ttl_s:g} s"))
                    await self.stop(engine, is_saving=True)

    def kill(self) -> None:
        """Kill all processes at once."""
        self.is_closed = True
        for engine in self.roster:
            if engine.server is not None and engine.server.process is not None:
                engine.server.process.kill()
                engine.server.stop()

    async def close(self) -> None:
        """Stop all engines, and those that are starting."""
        self.is_closed = True
        for engine in self.roster:
            if isinstance(engine.phase, Loading):
                if engine.server is not None and engine.server.process is not None:
                    with suppress(ProcessLookupError):
                        engine.server.process.terminate()
            elif engine.starting is not None:  # it waits for its backoff
                engine.starting.cancel()
        loaded = [one for one in self.roster if one.is_loaded]
        await asyncio.gather(*(self.stop(one, is_saving=True) for one in loaded))
        if self.tasks:  # they load, watch, handle deaths or cancel requests
            await asyncio.wait(self.tasks, timeout=5)
