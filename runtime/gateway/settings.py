"""The settings of a gateway: access, limits and times."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from exporter.core.errors import InputError
from runtime.engine.speculation import OFF, Speculation
from runtime.gateway.request_limits import Limits
from runtime.rpc.protocol import Spread

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The gateway's options; times are in seconds."""

    host: str = "127.0.0.1"
    """The address that the server listens on."""
    keys: tuple[str, ...] = ()
    """API keys, any of which is accepted; without keys, access is open."""
    admin_keys: tuple[str, ...] = ()
    """Keys that add and remove adapters; if there are API keys, these keys open all routes, too."""
    adapter_dir: Path | None = None
    """A folder whose adapters are served, as they come and go."""
    adapter_folders: tuple[Path, ...] = ()
    """The folders from which a request may add an adapter."""
    adapter_base: str | None = None
    """The base's folder or repo, to convert adapters with; None for the base that they name."""
    allow_pull: bool = False
    """Whether an adapter or a base that is missing may be downloaded for a request."""
    origins: frozenset[str] = frozenset()
    """Origins of pages that may call the server, such as https://chat.example."""
    hosts: frozenset[str] = frozenset()
    """More host names of this server."""
    parallel: int | None = None
    """Slots of an engine; None takes as many as fit."""
    context: int | None = None
    """The context of each conversation, in tokens."""
    threads: int | None = None
    isolate: bool = False
    """Whether each adapter, and the base alone, runs in a separate process."""
    rpc: Spread | None = None
    """Workers that compute layers of each model."""
    speculation: Speculation = OFF
    """The kind of speculation, for the models that can use it."""
    prompt_folder: Path = Path()
    """Where engines' prompts are kept while they do not run."""
    prompt_nbytes: int = 0
    """The most bytes that are kept there; 0 keeps none."""
    ttl_s: float = 600
    """The idle time after which a model is unloaded; 0 keeps it."""
    linger_s: float = 0
    """The time after SIGTERM in which requests are still taken, while /readyz answers 503."""
    grace_s: float = 30
    """The time that running requests have to finish when the server ends."""
    window_s: float = 0.5
    """The batch window: requests with the running LoRA scales may overtake others."""
    max_queue: int = 128
    """Requests that may wait for one engine."""
    max_per_client: int = 64
    """Requests of one client on the whole server, waiting or being answered."""
    queue_s: float = 600
    """The longest wait in the queue."""
    max_tokens: int | None = None
    """The most tokens of one answer."""
    head_s: float = 15
    """The time limit for a request's head to arrive."""
    limits: Limits = field(default_factory=Limits)
    """Limits of one request's content."""
    body_s: float = 30
    """The time limit for a request's body to arrive."""
    stall_s: float = 60
    """The longest time that a client may leave an answer unread."""
    release_s: float = 20
    """An engine that computes on for this time after its client left is restarted; 0: never."""
    health_s: float = 20
    """An engine whose health check takes longer is restarted; 0: never."""
    chosen_s: float = 20
    """The time for which an engine with client-chosen scales stays, even if others are needed."""
    allow_fields: frozenset[str] = frozenset()
    """Withheld fields of llama-server that clients may set: see `body.WITHHELD`."""
    media_hosts: frozenset[str] = frozenset()
    """Hosts from which the engine may download images; none by default."""
    extra: tuple[str, ...] = ()
    """More flags of llama-server, for every engine."""

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The keys that open all routes; none where access is open."""
        return (*self.keys, *self.admin_keys) if self.keys else ()


def is_address(name: str) -> bool:
    """Whether a Host header is an IP address, which DNS rebinding cannot produce."""
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
        raise InputError(f"{text!r} is not a duration", hint="examples: 90s, 10m, 2h; 0 is never")
    return found


def check_tls(cert: Path, key: Path | None) -> None:
    """Raise InputError for a certificate and a key that https cannot use."""
    import ssl  # imported here, because it is slow and only https needs it

    def ask(*_: object) -> str:
        """Called for a key with a password. Raises InputError."""
        raise InputError(f"the key of `{cert}` is encrypted", hint="decrypt it with `openssl pkey`")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, ask)
    except OSError as error:  # ssl's errors are OSErrors, too
        beside = f" with `{key}`" if key else ""
        why = getattr(error, "reason", None) or error.strerror or "it is not PEM"
        raise InputError(
            f"`{cert}`{beside} cannot be used for https: {str(why).lower().replace('_', ' ')}",
            hint="--tls-cert FILE.pem, and --tls-key FILE.pem where the key is not in it",
        ) from error
