"""What a gateway allows, and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import InputError
from runtime.gateway.request_limits import Limits
from runtime.rpc.protocol import Spread

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The gateway's options; seconds and bytes unless said otherwise."""

    host: str = "127.0.0.1"
    """The address it listens on."""
    keys: tuple[str, ...] = ()
    """Any of them opens; without one everybody who reaches the port may ask."""
    origins: frozenset[str] = frozenset()
    """Other pages that may ask, such as https://chat.example."""
    hosts: frozenset[str] = frozenset()
    """Other names this server is reached by."""
    parallel: int | None = None
    """Requests that a child answers at once; None takes what fits."""
    context: int | None = None
    """Tokens of each conversation."""
    threads: int | None = None
    isolate: bool = False
    """Whether each adapter, and its base without any, has a process of its own."""
    rpc: Spread | None = None
    """Workers that compute layers of each model."""
    ttl_s: float = 600
    """A model that nobody has asked for so long is unloaded; 0 keeps it."""
    linger_s: float = 0
    """How long after a SIGTERM requests are still taken, while /readyz tells balancers to stop."""
    grace_s: float = 30
    """What requests in flight have to finish when the server is asked to end."""
    epoch_s: float = 0.5
    """How long requests for one adapter may overtake those that wait for another."""
    max_queue: int = 128
    """Requests that may wait for one child."""
    max_per_client: int = 64
    """Requests of one client, waiting or answered, wherever."""
    queue_s: float = 600
    """The longest wait for a turn."""
    max_tokens: int | None = None
    """The most that one answer may have."""
    head_s: float = 15
    """The time in which a request's head must have come."""
    limits: Limits = field(default_factory=Limits)
    """What one request may hold."""
    body_s: float = 30
    """The time in which a request's body must have come."""
    stall_s: float = 60
    """How long a client may leave an answer unread."""
    release_s: float = 20
    """A child that holds on for so long to what its client has left is started again; 0: never."""
    health_s: float = 20
    """One that does not say for so long that it is well, too; 0: never."""
    chosen_s: float = 20
    """For so long an engine for scales that a client chose stays, whoever wants others."""
    allow_fields: frozenset[str] = frozenset()
    """Fields of llama-server's own that clients may set: see `requests.WITHHELD`."""
    media_hosts: frozenset[str] = frozenset()
    """Hosts that the engine may fetch images from; none by default."""
    extra: tuple[str, ...] = ()
    """More of llama-server's flags, for every child."""


def is_address(name: str) -> bool:
    """Whether a Host header's name is an IP address, which no foreign name server can hand out."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `2h` in seconds. Raises InputError."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        found = float(number) * units[unit]
    except ValueError:
        found = -1
    if not 0 <= found < float("inf"):
        raise InputError(f"{text!r} is no time", hint="such as 90s, 10m or 2h; 0 is never")
    return found


def check_tls(cert: Path, key: Path | None) -> None:
    """Raise InputError for a certificate and a key that nothing could be served with."""
    import ssl  # which takes a moment that others need not wait

    def ask(*_: object) -> str:
        raise InputError(f"the key of `{cert}` is encrypted", hint="openssl pkey decrypts it")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, ask)
    except OSError as error:  # ssl's own errors are some, too
        beside = f" with `{key}`" if key else ""
        why = getattr(error, "reason", None) or error.strerror or "it is no PEM"
        raise InputError(
            f"`{cert}`{beside} cannot be used for https: {str(why).lower().replace('_', ' ')}",
            hint="--tls-cert FILE.pem, and --tls-key FILE.pem where the key is not in it",
        ) from error
