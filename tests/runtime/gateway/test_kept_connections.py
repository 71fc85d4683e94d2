"""Connections that are kept for the next request."""

from __future__ import annotations

import asyncio
import statistics
import time
from http.client import HTTPConnection

from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.server import listening, serve
from runtime.gateway.settings import Settings

DELAYED_ACK_S = 0.04  # Linux: how long a receiver may keep its acknowledgement back
REQUESTS = 60  # Linux acknowledges the first of a connection at once


def times_of(port: int) -> list[float]:
    """Seconds that each of a connection's requests takes."""
    connection, found = HTTPConnection("127.0.0.1", port, timeout=10), []
    for _ in range(REQUESTS):
        began = time.monotonic()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        found.append(time.monotonic() - began)
    connection.close()
    return found


def test_an_answer_does_not_wait_for_the_last_ones_acknowledgement():
    """As Nagle's algorithm has it, which makes each piece of a stream late."""

    async def run() -> list[float]:
        settings = Settings()
        gateway = Gateway(settings, Catalog([]), EnginePool(settings, None))
        with listening("127.0.0.1", 0) as listener:
            work = asyncio.ensure_future(serve(gateway, build_app(gateway), listener))
            await asyncio.sleep(0.2)
            found = await asyncio.to_thread(times_of, listener.getsockname()[1])
            work.cancel()
            await asyncio.wait({work})
        return found

    assert statistics.median(asyncio.run(run())) < DELAYED_ACK_S * 0.75
