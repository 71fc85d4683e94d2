"""Whether an endpoint can be reached and is a hub, by one cheap request without a token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.hub.endpoints import Endpoint
from exporter.hub.source import is_html, words

if TYPE_CHECKING:
    import httpx2

PROBED = "openai-community/gpt2"  # old, small, and on every mirror; an honest 404 will do as well
TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Reach:
    """How an endpoint answered."""

    endpoint: Endpoint
    seconds: float
    problem: str = ""
    """Empty when it is a hub that works."""


def reach(endpoint: Endpoint, timeout_s: float = TIMEOUT_S) -> Reach:
    """Ask one endpoint for next to nothing."""
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
    """What is wrong with an answer; a hub's are JSON, or have its own error code."""
    if response.status_code >= 500 or response.status_code == 429:  # noqa: PLR2004 - HTTP
        return f"answers {response.status_code}"
    if is_html(response):
        return "answers with a web page: a login page or a portal?"
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    if is_json or "X-Error-Code" in response.headers:
        return ""
    return f"answers {response.status_code}, and not as a hub does"
