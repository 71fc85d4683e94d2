"""A remote server that speaks OpenAI's API: its address and its key."""

from __future__ import annotations

import http.client
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from exporter.core.errors import EngineError, InputError
from runtime.engine.model_server import ModelServer

# a host name, or an IPv6 address
HOST = re.compile(
    r"[a-z0-9_](-*[a-z0-9_])*(\.[a-z0-9_](-*[a-z0-9_])*)*\.?|[0-9a-f:.]*:[0-9a-f:.%\w]*"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_S = 30  # seconds to connect
SILENCE_S = 600  # seconds without a byte, such as while the server computes a prompt
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Remote(ModelServer):
    """A server at `http://HOST:PORT/PREFIX`; its key is sent to that host only."""

    scheme: str
    host: str
    port: int | None
    prefix: str
    """The path before /v1."""
    key: str | None = field(default=None, repr=False)

    @property
    def is_exposed(self) -> bool:
        """Whether a key and a conversation would cross a network unencrypted."""
        return self.scheme == "http" and self.host not in LOOPBACK

    def connect(self, method: str) -> http.client.HTTPConnection:
        del method  # a remote server may be slow to answer any method
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=CONNECT_S)
        connection.connect()
        connection.sock.settimeout(SILENCE_S)
        return connection

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def path_of(self, route: str) -> str:
        return self.prefix + route

    def unreachable(self, error: Exception) -> EngineError:
        return EngineError(
            f"{self} does not answer: {error or type(error).__name__}",
            hint="is the server running, and the address right?",
        )

    def raise_if_dead(self, when: str, *, wait_s: float = 0) -> None:
        """Do nothing: a remote process cannot be observed."""

    def __str__(self) -> str:
        """The server's address as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"{self.scheme}://{host}{f':{self.port}' if self.port is not None else ''}{self.prefix}"
        )


def parse_url(text: str, key: str | None) -> Remote:
    """Parse a server's address, with or without a final /v1. Raises InputError."""
    try:
        found = urlsplit(text if "://" in text else f"http://{text}")
        port = found.port
    except ValueError as error:
        raise InputError(
            f"{text!r} is not an address: {error}", hint="such as --url http://127.0.0.1:8080"
        ) from error
    if found.scheme not in ("http", "https") or not found.hostname or found.query:
        raise InputError(
            f"{text!r} is not a server's address", hint="such as --url http://127.0.0.1:8080"
        )
    if found.username or found.password:
        raise InputError(
            "an address must not contain a key, as it is shown and stored",
            hint="write it into a file that only you can read: --key-file FILE",
        )
    if not HOST.fullmatch(found.hostname):
        raise InputError(f"{found.hostname!r} is not a host name", hint="is the address right?")
    prefix = found.path.rstrip("/").removesuffix("/v1")
    return Remote(found.scheme, found.hostname, port, prefix, key)


def read_key(path: Path) -> str:
    """Read the key in a file. Raises InputError for no key, or if other users may read it."""
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(
            f"cannot read the key file `{path}`: {error.strerror}", hint="is the path right?"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` holds no key, but bytes", hint="is it the file?") from error
    if mode & OTHERS and os.name == "posix":
        raise InputError(
            f"others may read the key file `{path}` ({stat.filemode(mode)})",
            hint=f"chmod 600 {path}",
        )
    return check_key(key, f"`{path}`")


def check_key(key: str, where: str) -> str:
    """The key, checked. Raises InputError unless it is printable ASCII without spaces."""
    if not key.isascii() or not key.isprintable() or not key or " " in key:
        raise InputError(f"{where} holds no key", hint="one line, without spaces")
    return key
