"""The children of a gateway: started when asked for, stopped when idle, started again when dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from exporter.core.errors import (
    DecantError,
    EngineDiedError,
    SpaceError,
    TemplateRefusedError,
)
from exporter.core.events import Event, Note, Progress, Report, Step, Warn, silent
from exporter.toolchain import Toolchain
from runtime.child import DYING_S, Server
from runtime.engine import Model
from runtime.front import Fronts, front_of, said_of, unlike
from runtime.gateway.admission import Gate, Voice
from runtime.gateway.catalog import Named
from runtime.gateway.errors import ApiError, unavailable
from runtime.gateway.planning import ROLE_FLAGS, Key, Plan, Role, planned
from runtime.gateway.settings import Settings
from runtime.gateway.upstream import Address, address_of
from runtime.own_template import template_refused
from runtime.rpc import WorkerFacts, preflight

WATCH_S = 0.1  # between looks at whether a child lives
BACKOFF_S = (0.2, 1, 2, 5, 10, 30)
HEALTHY_S = 10  # a child that lived so long is not in a loop of crashes
PATIENCE_S = 5  # a request waits so long for a restart, else it is told to come again
VOICED_MAX = 3  # unused children that serve one scale of an adapter
State = Literal["unloaded", "loading", "loaded", "failed"]


@dataclass(eq=False)
class Child:
    """A model that is, was or will be loaded."""

    key: Key
    model: Model
    gate: Gate
    state: State = "unloaded"
    server: Server | None = None
    address: Address | None = None
    fronts: Fronts = field(default_factory=Fronts)
    """How requests are made ready for it."""
    starting: asyncio.Task[None] | None = None
    progress: float = 0
    """The part of the file that is loaded."""
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
    retry_at: float = 0
    error: DecantError | None = None

    @property
    def name(self) -> str:
        role = self.key.role
        return self.key.base if role == "generate" else f"{self.key.name} ({role})"

    @property
    def is_loaded(self) -> bool:
        return self.state == "loaded"

    @property
    def is_idle(self) -> bool:
        return self.is_loaded and not self.users


@dataclass(eq=False)
class Fleet:
    """All children. Everything but the loading itself happens on the event loop."""

    settings: Settings
    toolchain: Toolchain
    report: Report = silent
    clock: Callable[[], float] = time.monotonic
    children: dict[Key, Child] = field(default_factory=dict)
    planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_closed: bool = False

    def child(self, named: Named, role: Role = "generate") -> Child:
        """The child that answers for a model, loaded or not."""
        key = key_of(named, role)
        if key not in self.children:
            gate = Gate(self.settings.parallel or 1, self.settings, self.clock)
            self.children[key] = Child(key, named.model, gate)
        return self.children[key]

    @asynccontextmanager
    async def using(self, named: Named, role: Role = "generate") -> AsyncIterator[Child]:
        """A child that is loaded, and stays so inside the block. Raises ApiError."""
        child = self.child(named, role)
        child.users += 1
        try:
            await self.loaded(child)
            yield child
        finally:
            child.users -= 1
            child.last_used = self.clock()

    async def loaded(self, child: Child) -> None:
        """Return when the child is up; it is loaded once, however many wait."""
        if child.is_loaded:
            return
        if self.is_closed:
            raise unavailable("the server is shutting down", retry_after=5)
        if self.backoff(child) > PATIENCE_S:
            raise self.failure(child)
        if child.starting is None:
            child.starting = self.spawn(self.start(child))
        await asyncio.wait({child.starting})
        if not child.is_loaded:
            raise self.failure(child)

    def backoff(self, child: Child) -> float:
        """Seconds until it may be started again."""
        return max(0.0, child.retry_at - self.clock())

    def failure(self, child: Child) -> ApiError:
        why = child.error.message.splitlines()[0] if child.error else "it was unloaded"
        wait_s = int(self.backoff(child)) + 1
        path = str(child.model.header.path)
        told = why.replace(f"`{path}`", child.name).replace(path, child.name)
        return unavailable(f"{child.name!r} cannot be loaded: {told}", retry_after=wait_s)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside everything else, and hold on to it."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def start(self, child: Child) -> None:
        """Load the child when it is time; what fails is kept in it."""
        await asyncio.sleep(self.backoff(child))
        child.state, child.progress, child.error = "loading", 0, None
        try:
            try:
                await self.load(child)
            except TemplateRefusedError as error:
                self.report(Warn(template_refused(child.name, error)))
                child.model = replace(child.model, is_handed_over=True)
                await self.load(child)
        except DecantError as error:
            self.fail(child, error)
        finally:
            child.starting = None

    async def limit_voiced(self) -> None:
        """Forget the longest unused of those whose adapters' scales clients have chosen.

        There is no end of such scales.
        """
        unused = [
            child
            for child in self.children.values()
            if is_chosen(child.key.voice, child.model)
            and not child.users
            and child.starting is None
        ]
        for child in sorted(unused, key=lambda one: one.last_used)[:-VOICED_MAX]:
            del self.children[child.key]
            await self.stop(child)

    async def load(self, child: Child) -> None:
        began = self.clock()
        if child.key.voice:
            await self.limit_voiced()
        loop = asyncio.get_running_loop()

        def heard(event: Event) -> None:
            if isinstance(event, Progress) and event.total:
                child.progress = event.done / event.total

        await loop.run_in_executor(None, getattr, child.model, "chat")  # which may take a moment
        async with self.planning:  # memory is shared out to one at a time
            plan = await self.room_for(child)
            child.nbytes, child.context = plan.fit.need.total, plan.spec.context
            child.text_max = plan.text_max
            self.report(Step(f"loading {child.name}"))
            server = Server(plan.spec, self.toolchain, report=heard)
            child.server = server
            child.fronts = await loop.run_in_executor(None, fronts_of, child)
            await loop.run_in_executor(None, server.__enter__)
            await self.compare(child, server)
        child.address = address_of(server)
        child.gate.capacity = plan.spec.parallel
        child.state, child.progress = "loaded", 1
        child.began = child.last_used = self.clock()
        child.load_s = child.began - began
        if self.is_closed:
            await self.stop(child)
            return
        self.report(Step(f"{child.name} is loaded ({child.load_s:.1f} s)"))
        self.spawn(self.watch(child, server))
        child.gate.open()

    async def compare(self, child: Child, server: Server) -> None:
        """Say, at the first load, which conversations it renders otherwise than transformers."""
        if child.load_s or child.key.role in ROLE_FLAGS:
            return

        def compared() -> list[str]:
            found = [f"{child.name}: {said}" for said in unlike(server, server.spec.chat)]
            for adapter, own in zip(child.model.adapters, child.model.own, strict=True):
                found += [f"{child.name}:{adapter.name}: {said}" for said in said_of(server, own)]
            return found

        for said in await asyncio.get_running_loop().run_in_executor(None, compared):
            self.report(Note(said))

    async def room_for(self, child: Child) -> Plan:
        """How the child is run; idle ones are unloaded, longest unused first, if need be."""
        while True:
            workers = await self.workers_for(child)
            others = [one for one in self.children.values() if one.is_idle and one is not child]
            oldest = min(others, key=lambda one: one.last_used, default=None)
            try:
                plan = planned(child.key, child.model, self.settings, self.toolchain, workers)
            except SpaceError:
                if oldest is None:
                    raise
            else:
                if oldest is None or not plan.is_short:
                    return plan
            self.report(Step(f"unloading {oldest.name}: its memory is needed"))
            await self.stop(oldest)

    async def workers_for(self, child: Child) -> Sequence[WorkerFacts]:
        """What the workers say of themselves now; none computes for an encoder-decoder."""
        rpc = self.settings.rpc
        if rpc is None or child.model.is_encoder_decoder:
            return ()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, preflight, rpc, self.toolchain)

    def fail(self, child: Child, error: DecantError) -> None:
        """Remember why it cannot be loaded, and tell all who wait for it."""
        self.note_end(child, error)
        child.gate.refuse_all(self.failure(child))

    def note_end(self, child: Child, error: DecantError) -> None:
        """Remember why it is gone, and when it may be tried again."""
        child.state, child.error, child.server, child.address = "failed", error, None, None
        child.retry_at = self.clock() + BACKOFF_S[min(child.crashes, len(BACKOFF_S) - 1)]
        child.crashes += 1
        self.report(Warn(f"{child.name}: {error.message}"))

    async def watch(self, child: Child, server: Server) -> None:
        """Notice when a child dies, and start it again if it was in use."""
        while child.server is server and child.state == "loaded":
            try:
                server.raise_if_gone()
            except EngineDiedError as error:
                await self.bury(child, server, error)
                return
            except DecantError:
                return
            await asyncio.sleep(WATCH_S)

    async def revived(self, child: Child) -> None:
        """Return when a child that could not be reached is up again. Raises ApiError."""
        await self.mourned(child)
        await self.loaded(child)

    async def mourned(self, child: Child) -> None:
        """Let a child that broke off be known for dead, before anybody is sent there again."""
        server = child.server
        if server is not None:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(None, wait_for_end, server)
            except EngineDiedError as error:
                await self.bury(child, server, error)

    async def bury(self, child: Child, server: Server, error: EngineDiedError) -> None:
        if child.server is not server:  # somebody else has seen it, too
            return
        if self.clock() - child.began > HEALTHY_S:
            child.crashes = 0
        child.gate.close()
        was_wanted = bool(child.users)
        self.note_end(child, error)
        if self.backoff(child) > PATIENCE_S:  # else those who wait go on doing so
            child.gate.refuse_all(self.failure(child))
        await asyncio.get_running_loop().run_in_executor(None, server.stop)
        child.restarts += 1
        if was_wanted and not self.is_closed and child.starting is None:
            child.starting = self.spawn(self.start(child))

    async def stop(self, child: Child) -> None:
        """Unload; whoever asks for it loads it again."""
        server, child.server = child.server, None
        child.state, child.address, child.progress = "unloaded", None, 0
        child.gate.close()
        if server is not None:
            await asyncio.get_running_loop().run_in_executor(None, server.stop)

    async def unload_idle(self) -> None:
        """Unload what nobody has asked for in a while; runs until cancelled."""
        ttl_s = self.settings.ttl_s
        while ttl_s:
            await asyncio.sleep(min(1.0, ttl_s / 4))
            for child in list(self.children.values()):
                if child.is_idle and self.clock() - child.last_used > ttl_s:
                    self.report(Step(f"unloading {child.name}: idle for {ttl_s:g} s"))
                    await self.stop(child)

    def kill(self) -> None:
        """End all children at once."""
        self.is_closed = True
        for child in self.children.values():
            if child.server is not None and child.server.process is not None:
                child.server.process.kill()
                child.server.stop()

    async def close(self) -> None:
        """Stop all children, also those that are just being loaded."""
        self.is_closed = True
        for child in self.children.values():
            if child.state != "loading":
                if child.starting is not None:  # it waits for its time
                    child.starting.cancel()
            elif child.server and child.server.process:
                with suppress(ProcessLookupError):
                    child.server.process.terminate()
        await asyncio.gather(*(self.stop(c) for c in self.children.values() if c.state == "loaded"))
        if self.tasks:  # those that load, watch, bury or break off
            await asyncio.wait(self.tasks, timeout=5)


def fronts_of(child: Child) -> Fronts:
    """How requests are made ready for a child; what holds no conversation has no template."""
    is_asked = child.key.role not in ROLE_FLAGS
    return child.model.fronts if is_asked else Fronts(front_of(child.model.header))


def key_of(named: Named, role: Role) -> Key:
    """Which child answers for a model: one for all scales, where requests can say them."""
    if role == "generate":
        return Key(named.base, role)
    return Key(named.base, role, named.voice, named.id)


def is_chosen(voice: Voice, model: Model) -> bool:
    """Whether a client has asked for scales that are not listed."""
    listed = [adapter.scale for adapter in model.adapters]
    return any(voice) and voice not in [
        tuple(scale if one == place else 0.0 for one in range(len(listed)))
        for place, scale in enumerate(listed)
    ]


def wait_for_end(server: Server) -> None:
    """EngineDiedError when a child that does not answer has ended, or is about to."""
    server.raise_if_dead("while answering with", wait_s=DYING_S)
    server.raise_if_gone()
