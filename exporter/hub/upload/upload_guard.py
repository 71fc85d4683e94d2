"""Keeps an upload's requests, and the token, at the hub that the user named.

huggingface_hub follows redirects and opens new connections by itself. Every request of an upload
therefore passes two hooks of its client: other hosts get only the requests that the hub's answer
about large files (git-lfs) lists, without the token, and a redirect to another host is an error.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from exporter.core.errors import UploadError
from exporter.core.events import Note, Report, Warn
from exporter.hub.access_token import origin
from exporter.hub.endpoints import Endpoint
from exporter.hub.timeouts import Limits

if TYPE_CHECKING:
    import httpx2

LARGE_FILES = "/info/lfs/objects/batch"
"""End of the address that answers where large files are sent."""
ANSWER_S = 300.0
"""Seconds for an answer after the last byte: a hub checks gigabytes before it answers."""
LOGGER = "huggingface_hub"
ADVICE = "if that host is yours, name it: HF_ENDPOINT=https://HOST"


@dataclass(slots=True)
class UploadGuard:
    """The hooks of one upload."""

    endpoint: Endpoint
    token: str = field(repr=False)
    addresses: set[str] = field(default_factory=set)
    """Addresses on other hosts to which the hub asks to send large files."""

    def check_request(self, request: httpx2.Request) -> None:
        """Remove the token from requests to other hosts.

        Raises UploadError for an address that the hub did not list.
        """
        if origin(str(request.url)) == origin(self.endpoint.url):
            return
        request.headers.pop("Authorization", None)
        if str(request.url) not in self.addresses:
            raise UploadError(
                f"{self.endpoint.name} refers to {request.url.host}, which is none of its hosts for"
                " large files",
                hint=ADVICE,
            )

    def check_response(self, response: httpx2.Response) -> None:
        """Note the addresses for large files. Raises UploadError for a redirect elsewhere."""
        here, home = str(response.url), origin(self.endpoint.url)
        if response.has_redirect_location:
            target = urljoin(here, response.headers["Location"])
            if not origin(here) == home == origin(target):
                scheme, host, _ = origin(target)
                raise UploadError(
                    f"{response.url.host} redirects to {scheme}://{host}, and an upload goes only"
                    f" to the endpoint that is named: {self.endpoint.url}",
                    hint=ADVICE,
                )
        elif origin(here) == home and response.url.path.endswith(LARGE_FILES):
            response.read()
            self.addresses |= set(addresses_in(response.content, home[0]))


def addresses_in(answer: bytes, scheme: str) -> Iterator[str]:
    """The addresses in git-lfs's answer; those in plain HTTP only if the hub itself uses it."""
    import httpx2

    try:
        objects = json.loads(answer)["objects"]
        actions = [a for one in objects for a in (one.get("actions") or {}).values()]
        found = [str(a["href"]) for a in actions]
        found += [
            str(value)
            for a in actions
            for key, value in (a.get("header") or {}).items()
            if key.isdigit()  # an address for each part of a large file
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # huggingface_hub says what is wrong with the answer
    for address in found:
        try:
            url = httpx2.URL(address)
        except (httpx2.InvalidURL, ValueError):
            continue
        if url.scheme in ("https", scheme):
            yield str(url)


class RetryLog(logging.Handler):
    """Tells the user of retries, without the addresses in huggingface_hub's own lines."""

    def __init__(self, name: str, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.name_of_host, self.report = name, report

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("Retrying in", "Rate limited")):
            how = message[:1].lower() + message[1:]
            self.report(Note(f"{self.name_of_host} did not take it: {how}"))


@contextmanager
def guarded(guard: UploadGuard, limits: Limits, *, report: Report) -> Iterator[None]:
    """huggingface_hub's requests pass the guard's hooks inside this block."""
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx2.Client:
        return httpx2.Client(
            event_hooks={"request": [guard.check_request], "response": [guard.check_response]},
            follow_redirects=True,
            timeout=httpx2.Timeout(ANSWER_S, connect=limits.connect_s, pool=None),
        )

    set_client_factory(client)
    try:
        with quiet_library(guard.endpoint.name, report):
            yield
    finally:
        set_client_factory(default_client_factory)


@contextmanager
def quiet_library(name: str, report: Report) -> Iterator[None]:
    """huggingface_hub prints nothing and sends no telemetry here; its warnings are reported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # lazily exported
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger(LOGGER)
    handlers, level, passes = logger.handlers, logger.level, logger.propagate
    telemetry = not constants.HF_HUB_DISABLE_TELEMETRY
    had_bars = not are_progress_bars_disabled()
    logger.handlers, logger.propagate = [RetryLog(name, report)], False
    logger.setLevel(logging.WARNING)
    disable_progress_bars()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            if warning.category is UserWarning:
                report(Warn(" ".join(str(warning.message).split())))
    finally:
        logger.handlers, logger.propagate = handlers, passes
        logger.setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = not telemetry
        if had_bars:
            enable_progress_bars()
