"""Access rules: each request's head is checked here before its body is read."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from exporter.core.errors import InputError
from runtime.gateway.api_errors import ApiError
from runtime.gateway.settings import LOOPBACK_NAMES, Settings, is_address
from runtime.process.network import is_loopback

OPEN = ("/livez", "/readyz", "/health", "/v1/health", "/")
"""Paths without a key: health checks, which reveal nothing, and the page itself."""
PAGE = "/page/"
REPORT = re.compile(r"/evaluations/[^/]+/report\.html")
"""The path of a report's page. Its handler checks the key: a frame sends a ticket instead."""
ADMIN = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""The paths of requests that change what is served."""
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
"""Headers of proxies on this machine, whose requests come from elsewhere."""
JSON_TYPE = b"application/json"
CLOSE = ((b"connection", b"close"),)
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]*)(:\d*)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?|[0-9a-f:.]{2,45}")
NO_WILDCARDS = ": wildcards are not supported, because they would let any page call this server"
SHOWN = 80  # characters of a name in an error
Head = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Guard:
    """The access rules of one server."""

    settings: Settings

    def check_sender(self, method: str, path: str, head: Head) -> None:
        """Raise ApiError (403) for a foreign Host name, and for a page that is not allowed."""
        self.check_host(head.get(b"host", b""))
        self.check_page(method, path, head)

    def check_request(self, method: str, path: str, head: Head, address: str = "") -> None:
        """Raise ApiError for a missing key (401, 403), or a body that is not JSON (415).

        address: the sender's address.
        """
        self.check_key(path, head)
        if path in ADMIN:
            self.check_admin(head, address)
        if method in ("POST", "PUT", "PATCH"):
            check_type(head)

    def check_host(self, value: bytes) -> None:
        """Raise ApiError for a foreign Host name, which a page sends after DNS rebinding."""
        name = host_name(value)
        if name in LOOPBACK_NAMES or name in self.settings.hosts:
            return
        bound = self.settings.host
        if name.strip("[]") == bound.strip("[]"):
            return
        if not is_loopback(bound) and is_address(name):
            return  # the server listens on other addresses, and clients may use any of them
        raise refused(f"{name!r} is not a name of this server: --allow-host adds one")

    def check_page(self, method: str, path: str, head: Head) -> None:
        """Raise ApiError for another site's page, even if it cannot read the answer."""
        origin = head.get(b"origin")
        if origin is not None:
            if not self.is_own(origin, head) and not self.is_allowed(origin):
                shown = origin.decode("latin-1")[:200]
                raise refused(
                    f"pages of {shown!r} may not call this server: --allow-origin allows them"
                )
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
            shown = site.decode("latin-1")[:40]
            raise refused(f"a page of another site may not call this server ({shown})")

    def is_own(self, origin: bytes, head: Head) -> bool:
        """Whether an origin is this server itself; behind a TLS proxy its scheme differs."""
        scheme, _, place = origin.lower().partition(b"://")
        site = head.get(b"sec-fetch-site", b"same-origin").lower()
        here = scheme in (b"http", b"https") and place == head.get(b"host", b"").lower()
        return here and site in (b"same-origin", b"none")

    def is_allowed(self, origin: bytes) -> bool:
        return origin.decode("latin-1").lower().rstrip("/") in self.settings.origins

    def check_key(self, path: str, head: Head) -> None:
        """Raise ApiError (401) unless the path is open, or the key is one of the server's."""
        if not self.settings.keys or path in OPEN or path.startswith(PAGE):
            return
        if self.client_key(head) is None and not REPORT.fullmatch(path):
            raise key_needed("a key is needed: Authorization: Bearer KEY")

    def check_admin(self, head: Head, address: str) -> None:
        """Raise ApiError (401, 403) unless the sender may change what is served.

        That takes an admin key; on a server without keys, a program on this machine may, too.
        """
        settings = self.settings
        if settings.admin_keys:
            if key_index(settings.admin_keys, head) is not None:
                return
            if self.client_key(head) is not None:
                raise refused("this key may not change adapters: use a key of --admin-key-file")
            raise key_needed("an admin key is needed: Authorization: Bearer KEY")
        if settings.keys:
            raise refused("adapters are changed with an admin key: --admin-key-file FILE sets one")
        is_direct = not any(name in head for name in FORWARDED)
        is_own = b"origin" not in head or self.is_own(head[b"origin"], head)
        is_here = is_loopback(address) and host_name(head.get(b"host", b"")) in LOOPBACK_NAMES
        if not (is_direct and is_own and is_here):
            raise refused(
                "without an admin key only programs on this machine may change adapters:"
                " --admin-key-file FILE sets one"
            )

    def client_key(self, head: Head) -> int | None:
        """The index of the request's key; None for a wrong or missing key, or without API keys."""
        return key_index(self.settings.all_keys, head)


def key_index(keys: Sequence[str], head: Head) -> int | None:
    """The index of a request's key; None for a wrong or missing one. Compares all keys."""
    scheme, _, bearer = head.get(b"authorization", b"").partition(b" ")
    given = bearer.strip() if scheme.lower() == b"bearer" else head.get(b"x-api-key", b"")
    equal = [hmac.compare_digest(key.encode(), given) for key in keys]
    return equal.index(True) if any(equal) else None


def host_name(value: bytes) -> str:
    """The name in a Host header, without its port."""
    found = HOST.fullmatch(value.decode("latin-1").strip().lower())
    return found["name"].rstrip(".") if found else value.decode("latin-1")


def checked_host(option: str, name: str) -> str:
    """The name as Host headers have it. Raises InputError for one that cannot occur there."""
    found = host_name(name.encode("utf-8", errors="replace"))
    if not NAME.fullmatch(found.strip("[]")):
        raise InputError(
            f"{option} {name[:SHOWN]!r} is not a host name" + (NO_WILDCARDS if "*" in name else ""),
            hint=f"such as {option} llm.example; repeat it for each name",
        )
    return found


def checked_origin(origin: str) -> str:
    """The origin as pages send it. Raises InputError for one that cannot occur there."""
    found = origin.lower().rstrip("/")
    scheme, _, place = found.partition("://")
    name = host_name(place.encode("utf-8", errors="replace")).strip("[]")
    if scheme not in ("http", "https") or not NAME.fullmatch(name):
        raise InputError(
            f"--allow-origin {origin[:SHOWN]!r} is not an origin"
            + (NO_WILDCARDS if "*" in origin else ""),
            hint="such as --allow-origin https://chat.example; repeat it for each",
        )
    return found


def check_type(head: Head) -> None:
    """Raise ApiError unless the body is JSON, which forms of other sites cannot send."""
    kind, _, parameters = head.get(b"content-type", b"").lower().partition(b";")
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    if kind.strip() != JSON_TYPE or charset not in (b"", b"utf-8"):
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "POST needs Content-Type: application/json",
            headers=CLOSE,
        )


def key_needed(message: str) -> ApiError:
    headers = ((b"www-authenticate", b"Bearer"), *CLOSE)
    return ApiError(HTTPStatus.UNAUTHORIZED, message, "invalid_api_key", headers=headers)


def refused(message: str) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, message, "forbidden", headers=CLOSE)
