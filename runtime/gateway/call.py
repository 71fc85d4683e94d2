"""The way of a request: from the client, through the queue, to an engine and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from exporter.core.errors import ModelError
from runtime.engine.purpose import ROUTE, purpose_of
from runtime.gateway.adapter_registry import AdapterRegistry
from runtime.gateway.api_errors import ApiError, EngineGoneError, NotThereError, unavailable
from runtime.gateway.body import applied, cost, dumped, needed, prepared, refuse_wrong_ids
from runtime.gateway.body_reader import Bodies
from runtime.gateway.catalog import Catalog, ResolvedModel
from runtime.gateway.evaluation_reports import Reports
from runtime.gateway.metrics import Metrics
from runtime.gateway.request_record import Record
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.placement import SAYING, Role
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.scheduling.request_queue import Clients
from runtime.gateway.scheduling.upstream import Reply, post
from runtime.gateway.settings import Settings
from runtime.scoring.score_route import SCORE

CHAT = "/v1/chat/completions"
ROLES: dict[str, Role] = {
    "/v1/embeddings": "embed", "/embedding": "embed", "/v1/rerank": "rerank", SCORE: "score",
}  # fmt: skip
IGNORES_LORA = frozenset(("/v1/messages",))
"""Routes on which llama-server ignores `lora`, and would reuse another adapter's cache."""
UNQUEUED = frozenset(
    ("/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens",
     "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens")
)  # fmt: skip
"""Routes that an engine answers without a slot."""
NEVER_S = 600  # the wait where `release_s` is 0: the engine's own time limit ends requests


@dataclass(eq=False)
class Gateway:
    """The state that all requests share."""

    settings: Settings
    catalog: Catalog
    pool: EnginePool
    metrics: Metrics = field(default_factory=Metrics)
    reports: Reports = field(default_factory=Reports)
    calls: dict[Call, asyncio.Task[None]] = field(default_factory=dict)
    """Requests in flight."""
    is_leaving: bool = False
    """Whether /readyz tells balancers to send no more requests."""
    is_draining: bool = False
    """Whether new requests are refused."""
    is_loading: bool = False
    """Whether the first model is still being loaded at the start."""
    clients: Clients = field(init=False)
    bodies: Bodies = field(init=False)
    adapters: AdapterRegistry = field(init=False)

    def __post_init__(self) -> None:
        self.adapters = AdapterRegistry(
            self.settings, self.catalog, self.pool, on_removal=self.metrics.forget
        )
        self.clients = Clients(self.settings.max_per_client)
        sees = any(model.projector is not None for model in self.catalog.models.values())
        self.bodies = Bodies(self.settings, sees=sees)
        self.pool.adapter_files.note(self.catalog.models.values())
        self.pool.model_files.note(self.catalog.models.values())

    def role_of(self, route: str, resolved: ResolvedModel) -> Role:
        """The role of the engine that answers a route."""
        role = ROLES.get(route, "generate")
        is_apart = route in IGNORES_LORA or self.settings.isolate
        return "fixed" if role == "generate" and resolved.lora_scales and is_apart else role

    async def preload(self) -> None:
        """Load the first model, so that the first request does not wait for it."""
        self.is_loading = True
        try:
            first = next(iter(self.catalog))
            route = ROUTE[purpose_of(first.model.header)]
            async with self.pool.using(first, self.role_of(route, first)):
                pass
        except ApiError:
            pass  # the log has it, and the first request gets the error
        finally:
            self.is_loading = False


class Outgoing(Protocol):
    """Sends ASGI messages to the client."""

    stuck_since: float | None
    """The time since when the client takes nothing; None while it reads."""

    async def __call__(self, message: Message) -> None: ...


@dataclass(eq=False)
class Call:
    """One request of a client, with its parsed body."""

    gateway: Gateway
    request: Request
    body: dict[str, Any]
    outgoing: Outgoing
    record: Record
    state: str = "reading"
    was_cut: str = ""
    """The reason why the server cancelled it; empty when it did not."""
    nbytes: int = 0
    """The body's size in bytes; a large body is processed in a thread."""
    resolved: dict[str, ResolvedModel] = field(default_factory=dict)
    """The models by their names, as they were when the call first named them."""

    def find(self, name: object) -> ResolvedModel:
        """The model that a name means, the same until the call ends. Raises ApiError."""
        key = name if isinstance(name, str) else None
        if key is None or key not in self.resolved:
            found = self.gateway.catalog.find(name)
            if key is None:
                return found
            self.resolved[key] = found
        return self.resolved[key]

    @asynccontextmanager
    async def forward(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[Reply]:
        """Forward a body to the engine of its `model`; yields the reply, its head read.

        Loads the model, waits for a slot, sets the LoRA scales. Leaving the block cancels the
        rest of the answer. Raises ApiError when the request cannot be answered.
        """
        gateway = self.gateway
        resolved = self.find(body.get("model"))
        self.record.model, self.record.label = resolved.id, resolved.label
        role = gateway.role_of(route, resolved)
        settings, can_say = gateway.settings, role in SAYING
        ready = await gateway.bodies.beside(
            self.nbytes,
            lambda: prepared(body, route, resolved, settings, can_say=can_say),
            self.record.client_id,
        )
        self.state = "loading"
        needs = needed(ready, resolved) if "lora" in settings.allow_fields else None
        async with gateway.pool.using(resolved, role, needs) as engine:
            self.state = "waiting"
            async with self.send_in_turn(engine, route, resolved, ready) as reply:
                yield reply

    @asynccontextmanager
    async def send_in_turn(
        self, engine: EngineEntry, route: str, resolved: ResolvedModel, body: Mapping[str, Any]
    ) -> AsyncIterator[Reply]:
        """Wait for a slot and send the body; yields the reply, its head read.

        Leaving the block cancels the rest of the answer. Raises ApiError.
        """
        if why := engine.missing(engine.scales_for(resolved)):
            raise unavailable(why, retry_after=60)
        has_context = engine.key.role == "generate" and not engine.model.is_encoder_decoder
        check = partial(refuse_wrong_ids, body, engine.context if has_context else None)
        await self.gateway.bodies.beside(self.nbytes, check, self.record.client_id)
        give_back = await self.wait_for_turn(engine, route, resolved, body)
        reply = None
        try:
            self.state = "answering"
            try:
                front = engine.front(resolved, self.template_scales(body, resolved))
                numbered = engine.for_engine(body, resolved.model.adapters)
                payload = await self.gateway.bodies.beside(
                    self.nbytes,
                    lambda: dumped({**front.ready(route, numbered), "model": resolved.id}),
                    self.record.client_id,
                )
            except ModelError as error:
                raise unavailable(f"{resolved.id!r}: {error.message}", retry_after=60) from error
            reply = await self.post_once(engine, route, payload)
            await reply.read_head()
            yield reply
        except EngineGoneError:
            await self.gateway.pool.wait_for_exit(engine)
            raise
        finally:
            if reply is not None and not reply.is_finished:
                self.gateway.pool.spawn(self.break_off(reply, engine, give_back))
            else:
                give_back()
                if reply is not None:
                    reply.close()

    def template_scales(self, body: Mapping[str, Any], resolved: ResolvedModel) -> Sequence[float]:
        """The scales that choose the template of a prepared request."""
        if "lora" in self.gateway.settings.allow_fields:
            return applied(body, resolved)
        return resolved.template_scales

    async def wait_for_turn(
        self, engine: EngineEntry, route: str, resolved: ResolvedModel, body: Mapping[str, Any]
    ) -> Callable[[], None]:
        """Wait for a slot; returns the function that frees it. Raises ApiError."""
        if route in UNQUEUED:
            aside = await engine.beside.admit((), client=self.record.client_id)
            return lambda: engine.beside.release(aside)
        slots = 1 if route == SCORE else cost(body)
        scales = engine.scales_for(resolved)
        waiter = await engine.queue.admit(scales, slots, self.record.client_id)
        self.record.waited_s += waiter.waited_s
        self.gateway.metrics.waited(resolved.label, waiter.waited_s)
        return lambda: engine.queue.release(waiter)

    async def break_off(
        self, reply: Reply, engine: EngineEntry, give_back: Callable[[], None]
    ) -> None:
        """Cancel a reply whose client has left, and free its slot once the engine stops.

        An engine that computes on is restarted, because other requests wait for its slot.
        """
        gateway, server = self.gateway, engine.server
        limit_s = gateway.settings.release_s
        try:
            with gateway.clients.held(self.record.client_id):
                if not await reply.leave(limit_s or NEVER_S) and limit_s:
                    why = f"it still computes {limit_s:g} s after its client left"
                    await gateway.pool.renew(engine, server, why)
        finally:
            give_back()

    async def post_once(self, engine: EngineEntry, route: str, payload: bytes) -> Reply:
        """Send the request; send it again only when no engine received it.

        Raises NotThereError when no engine runs after a restart.
        """
        if engine.address is not None:
            with suppress(NotThereError):
                return await post(engine.address, route, payload)
        await self.gateway.pool.restart(engine)
        if engine.address is None:
            raise NotThereError
        return await post(engine.address, route, payload)


Handler = Callable[[Call], Awaitable[Response | None]]
"""Answers a call: returns a response, or None after sending one itself."""


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path, with the handler of its calls."""

    method: str
    path: str
    handler: Handler
