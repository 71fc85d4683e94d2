"""A request queue for tests: with a clock that stands, and requests of three voices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.gateway.scheduling.request_queue import RequestQueue
from runtime.gateway.settings import Settings

A, B, C = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def running(
    test: Callable[[RequestQueue, Clock], Coroutine[Any, Any, None]],
    capacity=2,
    takes_turns=False,
    **settings,
):
    clock = Clock()

    async def run() -> None:
        await test(RequestQueue(capacity, Settings(**settings), clock, takes_turns), clock)

    asyncio.run(run())


def asking(queue: RequestQueue, lora_scales, cost=1, client="") -> asyncio.Task[Any]:
    return asyncio.ensure_future(queue.admit(lora_scales, cost, client))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
