"""The gateway's status routes: models, health, metrics."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from runtime.gateway.api_errors import ApiError
from runtime.gateway.call import CHAT, Call, Gateway, Route
from runtime.gateway.catalog import ResolvedModel, listing
from runtime.gateway.metrics import relabelled
from runtime.gateway.scheduling.engine_entry import EngineEntry, key_of
from runtime.gateway.scheduling.upstream import get

SCRAPE_S = 2  # the time limit for one engine's metrics
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def models(call: Call) -> Response:
    gateway = call.gateway
    data = [described(gateway, resolved) for resolved in gateway.catalog]
    limits = {"body": gateway.bodies.most, "pixels": gateway.settings.limits.pixels}
    return JSONResponse({"object": "list", "data": data, "limits": limits})


async def model(call: Call) -> Response:
    resolved = call.gateway.catalog.find(call.request.path_params["id"])
    return JSONResponse(described(call.gateway, resolved))


def described(gateway: Gateway, resolved: ResolvedModel) -> dict[str, Any]:
    """A model's entry in the list, whether it is loaded, and the process that answers it.

    Models with one `engine` share a process, in which different LoRA scales take turns.
    """
    key = key_of(resolved, gateway.role_of(CHAT, resolved))
    engine = gateway.pool.engines.get(key)
    status: dict[str, Any] = {"value": engine.state if engine else "unloaded"}
    if engine is not None and engine.state == "loading":
        status["progress"] = round(engine.progress, 3)
    if engine is not None and engine.state == "loaded":
        status |= {"context": engine.context, "parallel": engine.queue.capacity}
    return listing(resolved) | {"status": status, "engine": key.name or key.base}


async def livez(call: Call) -> Response:
    del call
    return JSONResponse({"status": "ok"})


async def readyz(call: Call) -> Response:
    gateway = call.gateway
    if gateway.is_leaving or gateway.is_loading:
        status = "draining" if gateway.is_leaving else "loading"
        return JSONResponse(
            {"status": status}, HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"}
        )
    return JSONResponse({"status": "ok"})


async def metrics(call: Call) -> Response:
    gateway = call.gateway
    engines = [engine for engine in gateway.pool.engines.values() if is_llama_server(engine)]
    texts = await asyncio.gather(*(engine_metrics(engine) for engine in engines))
    by_model = {engine.name: text for engine, text in zip(engines, texts, strict=True)}
    return Response(gateway.metrics.text() + relabelled(by_model), media_type=METRICS_TYPE)


def is_llama_server(engine: EngineEntry) -> bool:
    return (
        engine.server is not None
        and engine.server.spec.engine == "llama-server"
        and engine.is_loaded
    )


async def engine_metrics(engine: EngineEntry) -> str:
    """An engine's metrics; empty when it does not answer in time."""
    reply = None
    try:
        assert engine.address is not None
        reply = await get(engine.address, "/metrics")
        await asyncio.wait_for(reply.read_head(), SCRAPE_S)
        body = await asyncio.wait_for(reply.read(), SCRAPE_S)
    except (ApiError, asyncio.TimeoutError):
        return ""
    finally:
        if reply is not None:
            reply.close()
    return body.decode("utf-8", errors="replace") if reply.status == HTTPStatus.OK else ""


ROUTES = (
    Route("GET", "/v1/models", models),
    Route("GET", "/models", models),
    Route("GET", "/v1/models/{id:path}", model),
    Route("GET", "/models/{id:path}", model),
    Route("GET", "/livez", livez),
    Route("GET", "/readyz", readyz),
    Route("GET", "/health", readyz),
    Route("GET", "/v1/health", readyz),
    Route("GET", "/metrics", metrics),
)
