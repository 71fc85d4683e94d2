"""The bounded queue of one engine, with batch windows for requests that can be batched.

llama-server batches only requests with equal LoRA scales. Those join the running ones within a
batch window. Requests with other scales begin beside them, in a free slot, after a short wait, and
the engine gives the scales turns (the patch `turns` in vendor/llama.cpp.toml). An engine that gives
none finishes the running requests after the window, then another begins the next window.

Clients take turns: the client with the fewest slots comes first, then the one with the fewest
slot-seconds since it came. Among one client's requests, the one that waits longest comes first.
While others come, too, a client gets no further slots beyond half of them: a list of long texts
would else fill all slots in the moment between two short answers.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from runtime.gateway.api_errors import ApiError, unavailable
from runtime.gateway.settings import Settings

CROWDED_S = 1.0
"""The time after requests of several clients in which more are expected."""
BESIDE_S = 0.05
"""The wait, in seconds, after which a request begins beside those with other LoRA scales."""
LoraScales = tuple[float, ...]
"""The LoRA scale of each adapter; requests with equal scales can be batched."""


@dataclass(eq=False)
class Clients:
    """Counts each client's requests in the whole server, until the engines release them."""

    most: int
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Count a request of the client inside the block. Raises ApiError above the limit."""
        if self.counts[client] >= self.most:
            raise too_many(f"this client already has {self.counts[client]} requests on this server")
        with self.held(client):
            yield

    @contextmanager
    def held(self, client: str) -> Iterator[None]:
        """Count a request inside the block, without a limit: used while one is cancelled."""
        self.counts[client] += 1
        try:
            yield
        finally:
            self.counts[client] -= 1
            if not self.counts[client]:
                del self.counts[client]


@dataclass(eq=False, slots=True)
class Waiter:
    """One request in the queue, then at the engine."""

    lora_scales: LoraScales
    cost: int
    """Slots that the request takes."""
    since: float
    granted: asyncio.Future[None]
    client: str = ""
    waited_s: float = 0


@dataclass(eq=False, slots=True)
class Share:
    """One client's share of an engine, kept while it has requests there."""

    slot_s: float
    """Used slots times seconds; a new client begins at the lowest value of all clients."""
    slots: int = 0
    requests: int = 0
    """Requests that wait or are being answered."""


@dataclass(eq=False)
class RequestQueue:
    """Admits requests to one engine, as its slots become free."""

    capacity: int
    settings: Settings
    clock: Callable[[], float]
    takes_turns: bool = False
    """Whether the engine gives requests with different LoRA scales turns."""
    switches: int = 0
    """Batch windows that began with other LoRA scales."""
    is_open: bool = True
    lora_scales: LoraScales | None = None
    began: float = 0
    used: int = 0
    """Slots of the admitted requests."""
    waiting: deque[Waiter] = field(default_factory=deque)
    shares: dict[str, Share] = field(default_factory=dict)
    """The shares by client."""
    latest: tuple[str, float] = ("", -CROWDED_S)
    """The last request's client and time."""
    crowded_until: float = 0
    waking: asyncio.TimerHandle | None = None

    async def admit(self, lora_scales: LoraScales, cost: int = 1, client: str = "") -> Waiter:
        """Wait for free slots. Raises ApiError when the queue is full or the wait too long."""
        self.refuse_too_many()
        future = asyncio.get_running_loop().create_future()
        waiter = Waiter(lora_scales, min(cost, self.capacity), self.clock(), future, client)
        self.waiting.append(waiter)
        self.share_of(client).requests += 1
        self.note(client, waiter.since)
        self.schedule()
        try:
            await self.turn(future)
        except BaseException:  # a client's disconnect as well
            self.withdraw(waiter)
            raise
        return waiter

    def note(self, client: str, now: float) -> None:
        """Note whether several clients use the engine at this time."""
        before, then = self.latest
        self.latest = client, now
        if len(self.shares) > 1 or (before != client and now - then < CROWDED_S):
            self.crowded_until = now + CROWDED_S

    async def turn(self, future: asyncio.Future[None]) -> None:
        await asyncio.wait({future}, timeout=self.settings.queue_s)
        if not future.done():
            waited = f"no slot became free within {self.settings.queue_s:g} s"
            raise unavailable(waited, retry_after=10)
        future.result()  # raises the error from `refuse_all`

    def refuse_too_many(self) -> None:
        is_full = self.used >= self.capacity or self.waiting
        if is_full and len(self.waiting) >= self.settings.max_queue:
            raise too_many(f"{len(self.waiting)} requests already wait for this model")

    def withdraw(self, waiter: Waiter) -> None:
        """Leave the queue, or release the slots if they were granted in the meantime."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)
            self.forget(waiter)
            self.schedule()
        elif waiter.granted.exception() is None:
            self.release(waiter)

    def release(self, waiter: Waiter | None) -> None:
        """Free the slots of a request that has ended; None took no slots."""
        if waiter is None:
            return
        self.used -= waiter.cost
        share = self.shares[waiter.client]
        share.slots -= waiter.cost
        share.slot_s += waiter.cost * (self.clock() - waiter.since - waiter.waited_s)
        self.forget(waiter)
        self.schedule()

    def share_of(self, client: str) -> Share:
        if client not in self.shares:
            least = min((share.slot_s for share in self.shares.values()), default=0)
            self.shares[client] = Share(least)
        return self.shares[client]

    def forget(self, waiter: Waiter) -> None:
        """Remove a request from its client's share, and the share after its last request."""
        share = self.shares[waiter.client]
        share.requests -= 1
        if not share.requests:
            del self.shares[waiter.client]

    def schedule(self) -> None:
        """Admit the requests that fit into free slots now."""
        while self.is_open and self.waiting:
            waiter = self.next_one()
            if waiter is None:
                return
            waiter.cost = min(waiter.cost, self.capacity)  # which a restart may have reduced
            if self.used + waiter.cost > self.capacity:
                return
            if not self.used or waiter.lora_scales != self.lora_scales:
                self.begin(waiter.lora_scales)
            self.waiting.remove(waiter)
            self.used += waiter.cost
            self.shares[waiter.client].slots += waiter.cost
            waiter.waited_s = self.clock() - waiter.since
            waiter.granted.set_result(None)

    def next_one(self) -> Waiter | None:
        if not self.used:
            return min(self.waiting, key=self.order)
        equals = [one for one in self.waiting if one.lora_scales == self.lora_scales]
        others = [one for one in self.waiting if one.lora_scales != self.lora_scales]
        is_over = self.clock() - self.began >= self.settings.window_s
        if not self.takes_turns:
            return None if is_over and others else self.first(equals)
        if others and not is_over:  # equals that do not fit may hold them up until then
            self.wake_in(self.began + self.settings.window_s - self.clock())
        others = list(filter(self.may_begin_beside, others))
        if is_over:
            return self.first(others) or self.first(equals)
        return self.first(equals) or self.first(others)

    def first(self, waiters: Iterable[Waiter]) -> Waiter | None:
        """The next of some that wait; None where none may begin."""
        return min(filter(self.may_begin, waiters), key=self.order, default=None)

    def may_begin_beside(self, waiter: Waiter) -> bool:
        """Whether a request has waited long enough for those with its own LoRA scales."""
        left_s = waiter.since + BESIDE_S - self.clock()
        if left_s > 0:
            self.wake_in(left_s)
        return left_s <= 0

    def may_begin(self, waiter: Waiter) -> bool:
        """Whether its client has no slot, or leaves half of them to others that come.

        A request that may not is looked at again when no other has come for CROWDED_S.
        """
        has, most = self.shares[waiter.client].slots, (self.capacity + 1) // 2
        left_s = self.crowded_until - self.clock()
        if not has or has + waiter.cost <= most or left_s <= 0:
            return True
        self.wake_in(left_s)
        return False

    def wake_in(self, delay_s: float) -> None:
        """Look at the waiting requests after this time, or earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        if self.waking is not None:
            if self.waking.when() <= due:
                return
            self.waking.cancel()
        self.waking = loop.call_at(due, self.wake)

    def wake(self) -> None:
        self.waking = None
        self.schedule()

    def order(self, waiter: Waiter) -> tuple[int, float, float]:
        """The sort key: the smallest is next, and of equal ones `min` takes the queue's first."""
        share = self.shares[waiter.client]
        return share.slots, share.slot_s, waiter.since

    def begin(self, lora_scales: LoraScales) -> None:
        if self.lora_scales is not None and lora_scales != self.lora_scales:
            self.switches += 1
        self.lora_scales, self.began = lora_scales, self.clock()

    def close(self) -> None:
        """Admit no requests until `open` is called."""
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        self.schedule()

    def refuse_all(self, error: ApiError) -> None:
        """Answer all waiting requests with an error."""
        while self.waiting:
            waiter = self.waiting.popleft()
            self.forget(waiter)
            if not waiter.granted.done():
                waiter.granted.set_exception(error)


def too_many(message: str) -> ApiError:
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, "rate_limit_exceeded", retry_after=1)
