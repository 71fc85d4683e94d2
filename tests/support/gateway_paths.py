"""The paths that a gateway serves, read from the app itself."""

from __future__ import annotations

from runtime.gateway.access import ADMIN
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.routes_llama import PASSED
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings

ALIASES = [other for others in PASSED.values() for other in others]
NOT_DONE = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs")
"""Ollama's routes that always answer 501."""


def served_paths() -> list[tuple[str, str]]:
    """The methods and paths of a gateway without models."""
    nothing = Gateway(Settings(), Catalog([]), EnginePool(Settings(), None))
    routes = build_app(nothing).app.routes
    return [(method, route.path) for route in routes for method in sorted(route.methods)]


def asked_of_models() -> list[str]:
    """The paths of requests to a model, without aliases."""
    posted = [path for method, path in served_paths() if method == "POST"]
    others = (*ALIASES, *ADMIN)
    return [path for path in posted if path not in others and not path.startswith(NOT_DONE)]
