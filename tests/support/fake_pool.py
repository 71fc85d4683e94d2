"""A pool of fake engines, and a gateway over it that tests call without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from exporter.core.events import Event
from runtime.engine.opened_model import Model
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings
from tests.support.fake_engine import toolchain

Test = Callable[[EnginePool, Catalog], Awaitable[None]]


def running(test: Test, folder: Path, *models: Model, **settings: Any) -> EnginePool:
    """Run a test over a pool of fake engines."""
    told = folder / "told"
    told.touch()

    def report(event: Event) -> None:
        with told.open("a") as file:
            file.write(f"{event}\n")

    pool = EnginePool(Settings(parallel=2, context=64, **settings), toolchain(folder), report)

    async def run() -> None:
        try:
            await test(pool, Catalog(models))
        finally:
            await pool.close()

    asyncio.run(run())
    return pool


async def hold(pool: EnginePool, named: Any, role: Any = "generate", until: Any = None) -> None:
    async with pool.using(named, role):
        if until is not None:
            await until.wait()


async def eventually(fact: Callable[[], object]) -> None:
    async def wait() -> None:
        while not fact():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), 10)


async def asked(
    gateway: Gateway,
    route: str,
    body: object,
    *,
    patience_s: float = 60,
    head: Sequence[tuple[bytes, bytes]] = (),
    address: str = "127.0.0.1",
) -> Any:
    """Send a request to the app; returns the status and the answer.

    The client disconnects after `patience_s`.

    A body of None is a GET.
    """  # fmt: skip
    app = build_app(gateway)
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(patience_s)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [*head, (b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "GET" if body is None else "POST", "path": route,
             "headers": headers, "client": (address, 1), "query_string": b"",
             "root_path": ""}  # fmt: skip
    await app(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in sent)
    if not sent:
        return None, None
    heads = {(name.lower(), value) for name, value in sent[0]["headers"]}
    is_json = (b"content-type", b"application/json") in heads
    return sent[0]["status"], json.loads(text) if is_json else text
