"""One request's way: from a client, past the queue, to a child and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from exporter.core.errors import ModelError
from runtime.gateway.admission import Gate, Ticket
from runtime.gateway.catalog import Catalog, Named
from runtime.gateway.errors import ApiError, EngineGoneError, NotThereError, unavailable
from runtime.gateway.fleet import Child, Fleet
from runtime.gateway.metrics import Metrics
from runtime.gateway.planning import Role
from runtime.gateway.requests import applied, cost, dumped, prepared
from runtime.gateway.settings import Settings
from runtime.gateway.upstream import Reply, post
from runtime.purpose import ROUTE, purpose_of

CHAT = "/v1/chat/completions"
ROLES: dict[str, Role] = {
    "/v1/embeddings": "embed", "/embedding": "embed", "/v1/rerank": "rerank",
}  # fmt: skip
DEAF = frozenset(("/v1/messages",))
"""Routes on which a child does not hear of adapters, and would mix up their caches."""
UNQUEUED = frozenset(
    ("/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens",
     "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens")
)  # fmt: skip
"""What a child answers beside its slots."""


@dataclass(eq=False)
class Gateway:
    """What all requests share."""

    settings: Settings
    catalog: Catalog
    fleet: Fleet
    metrics: Metrics = field(default_factory=Metrics)
    calls: dict[Call, asyncio.Task[None]] = field(default_factory=dict)
    """Requests in flight."""
    is_leaving: bool = False
    """Whether balancers are to send no more requests."""
    is_draining: bool = False
    """Whether requests are turned away."""
    is_loading: bool = False
    """Until what is loaded at the start is."""

    def role_of(self, route: str, named: Named) -> Role:
        """Which kind of child answers on a route."""
        role = ROLES.get(route, "generate")
        is_apart = route in DEAF or self.settings.isolate
        return "fixed" if role == "generate" and named.voice and is_apart else role

    async def preload(self) -> None:
        """Load the first model, so that the first request need not wait."""
        self.is_loading = True
        try:
            first = next(iter(self.catalog))
            route = ROUTE[purpose_of(first.model.header)]
            async with self.fleet.using(first, self.role_of(route, first)):
                pass
        except ApiError:
            pass  # the journal has it; the first request will be told
        finally:
            self.is_loading = False


class Outgoing(Protocol):
    """The way to the client."""

    stuck_since: float | None
    """When it stopped to take what is sent."""

    async def __call__(self, message: Message) -> None: ...


class Record(Protocol):
    """What will be written down of a call."""

    model: str
    label: str
    waited_s: float
    nbytes: int


@dataclass(eq=False)
class Call:
    """One request of a client, its body read and parsed."""

    gateway: Gateway
    request: Request
    body: dict[str, Any]
    client: str
    """Who asks, for what each may have: a key's number, or an address."""
    outgoing: Outgoing
    record: Record
    state: str = "reading"
    was_cut: str = ""
    """Why it was broken off from here."""

    @asynccontextmanager
    async def answered(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[Reply]:
        """The child's answer to a body, whose `model` says which child.

        It is loaded if need be, waited for in the queue, told the adapters. Leaving the block
        breaks the answer off. Raises ApiError when there is none.
        """
        gateway = self.gateway
        named = gateway.catalog.find(body.get("model"))
        self.record.model, self.record.label = named.id, named.label
        role = gateway.role_of(route, named)
        ready = prepared(body, route, named, gateway.settings, can_say=role == "generate")
        self.state = "loading"
        async with gateway.fleet.using(named, role) as child:
            if route in UNQUEUED:
                async with self.asked(child, route, named, ready, None) as reply:
                    yield reply
                return
            self.state = "waiting"
            ticket = await child.gate.admit(named.voice, self.client, cost(ready))
            self.record.waited_s = ticket.waited_s
            gateway.metrics.waited(named.label, ticket.waited_s)
            async with self.asked(child, route, named, ready, ticket) as reply:
                yield reply

    @asynccontextmanager
    async def asked(
        self, child: Child, route: str, named: Named, body: Mapping[str, Any], ticket: Ticket | None
    ) -> AsyncIterator[Reply]:
        """The reply; leaving the block breaks off what is not finished."""
        reply = None
        try:
            self.state = "answering"
            try:
                ready = child.fronts.of(applied(body, named)).ready(route, body)
            except ModelError as error:
                raise unavailable(f"{named.id!r}: {error.message}", retry_after=60) from error
            reply = await self.posted(child, route, dumped({**ready, "model": named.id}))
            await reply.read_head()
            yield reply
        except EngineGoneError:
            await self.gateway.fleet.mourned(child)
            raise
        finally:
            if reply is not None and not reply.is_finished:
                self.gateway.fleet.spawn(abandon(reply, child.gate, ticket))
            else:
                child.gate.release(ticket)
                if reply is not None:
                    reply.close()

    async def posted(self, child: Child, route: str, payload: bytes) -> Reply:
        """The request, sent once: again only where nobody was there to hear it."""
        if child.address is not None:
            with suppress(NotThereError):
                return await post(child.address, route, payload)
        await self.gateway.fleet.revived(child)
        if child.address is None:
            raise NotThereError
        return await post(child.address, route, payload)


async def abandon(reply: Reply, gate: Gate, ticket: Ticket | None) -> None:
    """Give the slot back when the child has let go of a reply that nobody waits for."""
    try:
        await reply.leave()
    finally:
        gate.release(ticket)


Handler = Callable[[Call], Awaitable[Response | None]]
"""Answers a call: with a response, or None when it has sent one itself."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path whose handler is given a Call."""

    method: str
    path: str
    handler: Handler
