"""Decides who receives the access token: huggingface.co over https, and hosts the user trusts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

Origin: TypeAlias = tuple[str, str, int]
HUB = ("huggingface.co", "hf.co")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class TokenRule:
    """The access token and the hosts that may receive it."""

    token: str | None = field(default=None, repr=False)
    trusted: tuple[str, ...] = ()
    """Trusted HOST or HOST:PORT, from --trust-token."""

    def token_for(self, url: str) -> str | None:
        """The token if `url` may receive it: over https only, except on this machine."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme == "https" and host in HUB:
            return self.token
        named = host in self.trusted or f"{host}:{origin(url)[2]}" in self.trusted
        if named and (parts.scheme == "https" or host in LOOPBACK):
            return self.token
        return None


def origin(url: str) -> Origin:
    """Scheme, host and port of a URL, as in a browser's same-origin rule."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme, 0)


def address(where: Origin) -> str:
    """An origin as text, such as https://huggingface.co:443."""
    scheme, host, port = where
    return f"{scheme}://{host}:{port}"


def find_token(given: str | None, env: Mapping[str, str]) -> str | None:
    """The given token, else HF_TOKEN, else the token of `hf auth login`."""
    if given:
        return given.strip()
    if env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    from huggingface_hub import get_token

    return get_token()
