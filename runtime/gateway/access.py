"""Who may ask: everything that is settled by a request's head, before its body is read."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from exporter.core.errors import InputError
from runtime.gateway.api_errors import ApiError
from runtime.gateway.settings import LOOPBACK_NAMES, Settings, is_address
from runtime.process.network import is_loopback

OPEN = ("/livez", "/readyz", "/health", "/v1/health", "/")
"""Paths that need no key: they tell nothing, or are the page itself."""
PAGE = "/page/"
JSON_TYPE = b"application/json"
CLOSE = ((b"connection", b"close"),)
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]*)(:\d*)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?|[0-9a-f:.]{2,45}")
NO_WILDCARDS = ": there are no wildcards, which would let every page ask that can find its way here"
SHOWN = 80  # characters of a name in an error
Head = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules of one server."""

    settings: Settings

    def check_sender(self, method: str, path: str, head: Head) -> None:
        """Raise ApiError (403) for another server's name, and for a page that may not ask."""
        self.check_host(head.get(b"host", b""))
        self.check_page(method, path, head)

    def check_request(self, method: str, path: str, head: Head) -> None:
        """Raise ApiError for one without a key (401), or with a body that is not JSON (415)."""
        self.check_key(path, head)
        if method in ("POST", "PUT", "PATCH"):
            check_type(head)

    def check_host(self, value: bytes) -> None:
        """A page whose name was made to point here (DNS rebinding) gives itself away by it."""
        name = host_name(value)
        if name in LOOPBACK_NAMES or name in self.settings.hosts:
            return
        bound = self.settings.host
        if name.strip("[]") == bound.strip("[]"):
            return
        if not is_loopback(bound) and is_address(name):
            return  # listening on every address, and asked by one
        raise refused(f"this server is not called {name!r}: --allow-host names another name")

    def check_page(self, method: str, path: str, head: Head) -> None:
        """Pages elsewhere may not ask, not even blindly."""
        origin = head.get(b"origin")
        if origin is not None:
            if not self.is_own(origin, head) and not self.is_allowed(origin):
                shown = origin.decode("latin-1")[:200]
                raise refused(f"pages of {shown!r} may not ask: --allow-origin lets them")
            return
        site = head.get(b"sec-fetch-site", b"none").lower()
        if site in (b"none", b"same-origin"):
            return
        opens_page = (
            method == "GET"
            and path == "/"
            and head.get(b"sec-fetch-mode") == b"navigate"
            and head.get(b"sec-fetch-dest") == b"document"
        )
        if not opens_page:  # a link to the page is fine
            raise refused(f"a page of another site may not ask ({site.decode('latin-1')[:40]})")

    def is_own(self, origin: bytes, head: Head) -> bool:
        """Whether a page is this server's: behind a TLS proxy, only its scheme differs."""
        scheme, _, place = origin.lower().partition(b"://")
        site = head.get(b"sec-fetch-site", b"same-origin").lower()
        here = scheme in (b"http", b"https") and place == head.get(b"host", b"").lower()
        return here and site in (b"same-origin", b"none")

    def is_allowed(self, origin: bytes) -> bool:
        return origin.decode("latin-1").lower().rstrip("/") in self.settings.origins

    def check_key(self, path: str, head: Head) -> None:
        if not self.settings.keys or path in OPEN or path.startswith(PAGE):
            return
        if self.client_key(head) is None:
            headers = ((b"www-authenticate", b"Bearer"), *CLOSE)
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "a key is needed: Authorization: Bearer KEY",
                "invalid_api_key",
                headers=headers,
            )

    def client_key(self, head: Head) -> int | None:
        """Which of the keys a request bears; each is compared in full."""
        scheme, _, bearer = head.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else head.get(b"x-api-key", b"")
        equal = [hmac.compare_digest(key.encode(), given) for key in self.settings.keys]
        return equal.index(True) if any(equal) else None


def host_name(value: bytes) -> str:
    """The name in a Host header, without its port."""
    found = HOST.fullmatch(value.decode("latin-1").strip().lower())
    return found["name"].rstrip(".") if found else value.decode("latin-1")


def checked_host(option: str, name: str) -> str:
    """The name that a Host header must have. Raises InputError for what no header ever has."""
    found = host_name(name.encode("utf-8", errors="replace"))
    if not NAME.fullmatch(found.strip("[]")):
        raise InputError(
            f"{option} {name[:SHOWN]!r} names no host" + (NO_WILDCARDS if "*" in name else ""),
            hint=f"such as {option} llm.example; repeat it for each name",
        )
    return found


def checked_origin(origin: str) -> str:
    """The origin as pages send it. Raises InputError for what none ever sends."""
    found = origin.lower().rstrip("/")
    scheme, _, place = found.partition("://")
    name = host_name(place.encode("utf-8", errors="replace")).strip("[]")
    if scheme not in ("http", "https") or not NAME.fullmatch(name):
        raise InputError(
            f"--allow-origin {origin[:SHOWN]!r} is no origin"
            + (NO_WILDCARDS if "*" in origin else ""),
            hint="such as --allow-origin https://chat.example; repeat it for each",
        )
    return found


def check_type(head: Head) -> None:
    """A form that a page posts blindly is never JSON."""
    kind, _, parameters = head.get(b"content-type", b"").lower().partition(b";")
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    if kind.strip() != JSON_TYPE or charset not in (b"", b"utf-8"):
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "POST needs Content-Type: application/json",
            headers=CLOSE,
        )


def refused(message: str) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, message, "forbidden", headers=CLOSE)
