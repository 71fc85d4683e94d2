"""Checks the health of engines, by a route that the computing thread answers."""

from __future__ import annotations

import asyncio

from runtime.engine.llama_server import Engine, Server
from runtime.engine.opened_model import Model
from runtime.gateway.scheduling.engine_entry import EngineEntry
from runtime.gateway.scheduling.upstream import is_well

STEP_TOKENS = 2048  # llama-server's --batch-size: tokens that it computes before it reads its queue
PICTURE_TOKENS = 16_384  # patches of a large picture
FLOPS = 5e9  # per second of one thread on a busy machine; most reach several times as much
VALUE_BYTES = 2  # of a projector's values, in 16 bits


async def until_unwell(engine: EngineEntry, server: Server, health_s: float) -> str:
    """Wait until a process fails its health check, and return why; empty when it has ended.

    health_s: the seconds that a check may take, plus the engine's longest step; 0 for no checks.
    """
    limit_s = health_s + longest_step_s(engine.model, server.spec.threads)
    route = health_route(server.spec.engine)
    while health_s and engine.server is server and engine.address is not None:
        if not await is_well(engine.address, route, limit_s):
            return f"it has not answered a health check for {limit_s:.3g} s"
        await asyncio.sleep(health_s / 4)
    return ""


def health_route(engine: Engine) -> str:
    """The route that the computing thread answers.

    llama-server's /health is answered by another thread, even while the computing thread hangs.
    """
    return "/lora-adapters" if engine == "llama-server" else "/health"


def longest_step_s(model: Model, threads: int) -> float:
    """The seconds for which an engine may be busy with one step: a batch, or a picture."""
    work = model.header.parameters * STEP_TOKENS
    if model.projector is not None:
        work += model.projector.stat().st_size // VALUE_BYTES * PICTURE_TOKENS
    return 2 * work / (threads * FLOPS)
