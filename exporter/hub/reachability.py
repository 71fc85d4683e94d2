"""Tests whether an endpoint is a reachable hub, by one cheap request without a token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.hub.endpoints import Endpoint
from exporter.hub.source import is_html, words

if TYPE_CHECKING:
    import httpx2

PROBED = "openai-community/gpt2"  # old, small, on every mirror; a hub's 404 is fine, too
TIMEOUT_S = 3.0  # for the one request


@dataclass(frozen=True, slots=True)
class Reach:
    """The result of testing an endpoint."""

    endpoint: Endpoint
    seconds: float
    problem: str = ""
    """The fault found; empty for a working hub."""


def reach(endpoint: Endpoint, timeout_s: float = TIMEOUT_S) -> Reach:
    """Test one endpoint with a request for a model's description."""
    import httpx2
    from huggingface_hub import get_session

    path = "/api/models" if endpoint.kind == "hub" else "/api/v1/models"
    request = get_session().build_request(
        "GET", f"{endpoint.url}{path}/{PROBED}", timeout=timeout_s
    )
    began = time.monotonic()
    try:
        response = get_session().send(request, stream=True, follow_redirects=False, auth=None)
    except httpx2.HTTPError as error:
        return Reach(endpoint, time.monotonic() - began, words(error))
    response.close()
    return Reach(endpoint, time.monotonic() - began, problem_of(response))


def problem_of(response: httpx2.Response) -> str:
    """The fault in an answer; a hub sends JSON or its error code."""
    if response.status_code >= 500 or response.status_code == 429:  # noqa: PLR2004 - HTTP
        return f"answers {response.status_code}"
    if is_html(response):
        return "answers with a web page: a login page or a portal?"
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    if is_json or "X-Error-Code" in response.headers:
        return ""
    return f"answers {response.status_code}, and not as a hub does"
