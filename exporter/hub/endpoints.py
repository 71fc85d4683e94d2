"""The endpoints that serve bytes, in the user's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from exporter.core.errors import InputError
from exporter.hub.access_token import HUB

DEFAULT = "https://huggingface.co"
MODELSCOPE = "https://modelscope.cn"
LIST = "DECANT_ENDPOINTS"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A hub, a mirror of it, or ModelScope."""

    url: str
    """Address without a trailing slash."""
    kind: Literal["hub", "modelscope"] = "hub"
    repo: str | None = None
    """The repo's name on ModelScope, if it differs."""

    @property
    def name(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def is_reference(self) -> bool:
        """Whether it is the hub itself, whose hashes are authoritative."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" and parts.hostname in HUB


def settle_endpoints(env: MutableMapping[str, str]) -> None:
    """Move a list in HF_ENDPOINT to DECANT_ENDPOINTS; leave one address for huggingface_hub."""
    listed = env.get("HF_ENDPOINT", "")
    if "," in listed:
        env[LIST] = listed
        hubs = [part.strip() for part in listed.split(",") if not part.strip().startswith("model")]
        env["HF_ENDPOINT"] = next((hub for hub in hubs if hub), DEFAULT)


def endpoints_from(given: Sequence[str], env: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """The given endpoints, else those of HF_ENDPOINT, else the hub.

    Raises InputError for ModelScope alone, which has no list of a hub repo's files.
    """
    listed = env.get(LIST) or env.get("HF_ENDPOINT") or DEFAULT
    texts = list(given) or [text for text in listed.split(",") if text.strip()]
    endpoints = tuple(dict.fromkeys(parse_endpoint(text.strip()) for text in texts))
    if all(endpoint.kind == "modelscope" for endpoint in endpoints):
        raise InputError(
            "ModelScope alone cannot say which files a hub repo has",
            hint=f"name a hub as well: HF_ENDPOINT={DEFAULT},modelscope:",
        )
    return endpoints


def parse_endpoint(text: str) -> Endpoint:
    """Parse `https://HOST`, `modelscope:[ORG/NAME]` or `modelscope:URL[#ORG/NAME]`.

    Raises InputError for anything else.
    """
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
            hint=f"as a source of bytes, beside a hub: HF_ENDPOINT={DEFAULT},modelscope:",
        )
    return Endpoint(url.rstrip("/"))


def is_address(url: str) -> bool:
    """Whether `url` is http or https with a valid host and port."""
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
