"""The places bytes can come from, in the user's order, and how each is doing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from exporter.core.errors import InputError
from exporter.download.limits import Limits
from exporter.download.token import HUB

DEFAULT = "https://huggingface.co"
MODELSCOPE = "https://modelscope.cn"
LIST = "DECANT_ENDPOINTS"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A hub, a mirror of it, or ModelScope."""

    url: str
    """Without a slash at its end."""
    kind: Literal["hub", "modelscope"] = "hub"
    repo: str | None = None
    """The repo's name on ModelScope, where it is another."""

    @property
    def name(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def is_reference(self) -> bool:
        """Whether what it says of hashes is the hub's own word."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" and parts.hostname in HUB


def settle_endpoints(env: MutableMapping[str, str]) -> None:
    """Let HF_ENDPOINT be a list: huggingface_hub reads it too, and knows one address only."""
    listed = env.get("HF_ENDPOINT", "")
    if "," in listed:
        env[LIST] = listed
        hubs = [part.strip() for part in listed.split(",") if not part.strip().startswith("model")]
        env["HF_ENDPOINT"] = next((hub for hub in hubs if hub), DEFAULT)


def endpoints_from(given: Sequence[str], env: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """The endpoints given, else those of HF_ENDPOINT, else the hub."""
    listed = env.get(LIST) or env.get("HF_ENDPOINT") or DEFAULT
    texts = list(given) or [text for text in listed.split(",") if text.strip()]
    endpoints = tuple(dict.fromkeys(parse_endpoint(text.strip()) for text in texts))
    if all(endpoint.kind == "modelscope" for endpoint in endpoints):
        raise InputError(
            "ModelScope alone cannot say which files a hub repo has",
            hint=f"name a hub as well: --endpoint {DEFAULT}",
        )
    return endpoints


def parse_endpoint(text: str) -> Endpoint:
    """`https://HOST`, or `modelscope:[ORG/NAME]`, or `modelscope:URL[#ORG/NAME]`."""
    if text.startswith("modelscope:"):
        rest = text.removeprefix("modelscope:")
        url, _, repo = rest.partition("#") if "://" in rest else (MODELSCOPE, "", rest)
        if not is_address(url):
            raise InputError(
                f"the endpoint {text!r} is not an address",
                hint="modelscope:, modelscope:ORG/NAME or modelscope:URL#ORG/NAME",
            )
        return Endpoint(url.rstrip("/"), "modelscope", repo or None)
    url = text if "://" in text else f"https://{text}"
    if not is_address(url):
        raise InputError(
            f"the endpoint {text!r} is not an address", hint="such as https://hf-mirror.com"
        )
    parts = urlsplit(url)
    if (parts.hostname or "").endswith("modelscope.cn"):
        raise InputError(
            f"{parts.hostname} does not speak the hub's language",
            hint="as a source of bytes: --endpoint modelscope:",
        )
    return Endpoint(url.rstrip("/"))


def is_address(url: str) -> bool:
    """Whether `url` is http or https, with a host, and a port that exists if any."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and parts.username is None
            and parts.port != 0
            and is_host(parts.hostname)
        )
    except ValueError:
        return False


def is_host(name: str | None) -> bool:
    return bool(name and re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+", name))


class Health:
    """How one endpoint does in this pull. Its holder locks."""

    def __init__(self, endpoint: Endpoint, limits: Limits, clock: Callable[[], float]) -> None:
        """Know nothing bad yet."""
        self.endpoint, self.limits, self.clock = endpoint, limits, clock
        self.active = 0
        self.most = limits.in_all
        """Connections it may have; halved each time it says that they are too many."""
        self.failures = 0
        """In a row, without a byte between."""
        self.failed_at = -1.0
        self.closed_until = 0.0
        """It is not asked before."""
        self.benched_until = 0.0
        """Others go first until then."""
        self.rate: float | None = None
        """Bytes a second of one connection, as last measured."""
        self.problem = ""

    @property
    def is_dead(self) -> bool:
        return self.failures >= self.limits.tries

    @property
    def is_free(self) -> bool:
        most = 1 if self.failures else self.most  # one connection finds out, the others go on
        return not self.is_dead and self.clock() >= self.closed_until and self.active < most

    @property
    def is_benched(self) -> bool:
        return self.clock() < self.benched_until

    def doubt(self) -> None:
        """It did not work in an earlier pull: others first, and then one connection."""
        self.failures = 1
        self.benched_until = self.clock() + self.limits.bench_s

    def sent(self, nbytes: int, seconds: float) -> None:
        """Bytes arrived: whatever was wrong is over."""
        self.failures = 0
        if seconds > 0 and nbytes >= 64 << 10:
            self.rate = nbytes / seconds

    def failed(self, problem: str, *, began: float, got_bytes: bool) -> None:
        """Count a failure; those of requests begun before the last one are the same failure."""
        now, limits = self.clock(), self.limits
        self.problem = problem
        self.benched_until = max(self.benched_until, now + limits.bench_s)
        if got_bytes or began < self.failed_at:
            return
        self.failures += 1
        self.failed_at = now
        wait = min(limits.backoff_s * 2 ** (self.failures - 1), limits.backoff_max_s)
        self.closed_until = max(self.closed_until, now + wait)

    def asked_to_wait(self, seconds: float, problem: str) -> None:
        now = self.clock()
        self.problem = problem
        self.most = max(1, min(self.most, self.active) // 2)
        self.closed_until = max(self.closed_until, now + seconds)
        self.benched_until = max(self.benched_until, now + seconds)

    def too_slow(self) -> None:
        self.benched_until = max(self.benched_until, self.clock() + self.limits.bench_s)


def is_slow(health: Health, rate: float, rates: Sequence[float], others: Iterable[Health]) -> bool:
    """Whether a connection should be given up for one to another endpoint, or a fresh one.

    Either it does less than a tenth of what the median connection does, or it is slow and
    another endpoint is free that is not known to be as slow.
    """
    if len(rates) >= 3 and rate < sorted(rates)[len(rates) // 2] / 10:  # noqa: PLR2004
        return True
    return rate < health.limits.slow_rate and any(
        other.is_free and not other.is_benched and (other.rate is None or other.rate > 3 * rate)
        for other in others
        if other is not health
    )


def healths(
    endpoints: Sequence[Endpoint], limits: Limits, clock: Callable[[], float] = time.monotonic
) -> dict[Endpoint, Health]:
    return {endpoint: Health(endpoint, limits, clock) for endpoint in endpoints}
