"""Finds the user's package index and a file's address on it."""

from __future__ import annotations

import base64
import importlib
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPResponse
from typing import cast
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, Request, build_opener

from .report import BuildError

JSON_PAGE = "application/vnd.pypi.simple.v1+json"  # PEP 691
HTML_PAGE = "application/vnd.pypi.simple.v1+html"  # PEP 691
TIMEOUT_S = 30  # of a request, and of `pip config list`


@dataclass(frozen=True, slots=True)
class Index:
    """A package index with the credentials to read it."""

    url: str
    """The URL without user name and password, so that messages can show it."""
    authorization: str = ""
    """The Authorization header's value for the index's host; empty if it needs none."""
    tls: ssl.SSLContext | None = None
    """The TLS settings; None for Python's default."""

    def open(self, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Return the response to a GET of `url`.

        Raises urllib's errors, and BuildError for a URL that is not http or https.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise BuildError(
                f"the package index leads to `{url}`, which is neither http nor https",
                hint="set DECANT_LLAMA_SDIST to a downloaded sdist",
            )
        request = Request(url, headers={"User-Agent": "decant", **headers})  # noqa: S310
        if self.authorization and urlsplit(url).netloc == urlsplit(self.url).netloc:
            request.add_unredirected_header("Authorization", self.authorization)
        opener = build_opener(HTTPSHandler(context=self.tls))
        # build_opener returns this class for http and https; typeshed declares only a union.
        return cast("HTTPResponse", opener.open(request, timeout=TIMEOUT_S))

    def link(self, project: str, file_name: str) -> str:
        """Return the URL of `file_name` on the project's page.

        Raises BuildError if the page does not list it.
        """
        normal = re.sub(r"[-_.]+", "-", project).lower()  # PEP 503
        page_url = f"{self.url.rstrip('/')}/{normal}/"
        accept = f"{JSON_PAGE}, {HTML_PAGE};q=0.5, text/html;q=0.3"
        with self.open(page_url, {"Accept": accept}) as response:
            base, kind = response.geturl(), response.headers.get_content_type()
            text = response.read().decode("utf-8", errors="replace")
        links = _json_links(text) if kind == JSON_PAGE else _html_links(text)
        for name, link in links:
            if name == file_name:
                return urljoin(base, link)
        raise BuildError(
            f"`{page_url}` does not list {file_name}",
            hint="set PIP_INDEX_URL to an index that has it, "
            "or DECANT_LLAMA_SDIST to a downloaded sdist",
        )


def find_index(
    env: Mapping[str, str], *, pip_settings: Callable[[Mapping[str, str]], str] | None = None
) -> Index:
    """Return the index that pip or uv would use: environment, pip's settings, pip's default."""
    configured = (
        env.get("PIP_INDEX_URL")
        or _index_url((pip_settings or _pip_settings)(env))
        or env.get("UV_DEFAULT_INDEX", "").rpartition("=")[2]  # may be `name=url`
        or env.get("UV_INDEX_URL")
        or _pips_default()
    )
    parts = urlsplit(configured.strip())
    user, at, host = parts.netloc.rpartition("@")
    token = base64.b64encode(unquote(user).encode()).decode() if at else ""
    url = urlunsplit((parts.scheme, host, parts.path, "", ""))
    tls = tls_context(env) if parts.scheme == "https" else None  # slow: loads bundles
    return Index(url, f"Basic {token}" if token else "", tls)


def tls_context(env: Mapping[str, str]) -> ssl.SSLContext:
    """Return the system's certificates, plus certifi's if it is installed and SSL_CERT_FILE
    unset.
    """
    context = ssl.create_default_context()
    if not env.get("SSL_CERT_FILE"):
        try:
            certifi = importlib.import_module("certifi")
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


def _pip_settings(env: Mapping[str, str]) -> str:
    """Return the output of `pip config list`, or an empty string if pip is absent."""
    # `pip config get` does not read the file that PIP_CONFIG_FILE names.
    argv = [sys.executable, "-m", "pip", "config", "list"]
    try:
        answer = subprocess.run(
            argv, env=dict(env), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _pips_default() -> str:
    """Return the index that pip uses by default."""
    try:
        url: str = importlib.import_module("pip._internal.models.index").PyPI.simple_url
    except (ImportError, AttributeError) as error:
        raise BuildError(
            "no package index is configured, and pip, which knows one, is not installed",
            hint="install pip, set PIP_INDEX_URL, or set DECANT_LLAMA_SDIST to a downloaded sdist",
        ) from error
    return url


def _index_url(settings: str) -> str:
    """Return the index in a list of pip's settings; `install` takes precedence over `global`."""
    found = dict(re.findall(r"^(global|install)\.index-url='(.*)'$", settings, re.MULTILINE))
    return found.get("install") or found.get("global") or ""


def _json_links(text: str) -> list[tuple[str, str]]:
    """Return (file name, link) pairs of a PEP 691 page."""
    return [(file["filename"], file["url"]) for file in json.loads(text)["files"]]


def _html_links(text: str) -> list[tuple[str, str]]:
    """Return (file name, link) pairs of a PEP 503 page; the name is the link's last segment."""
    anchors = _Anchors()
    anchors.feed(text)
    return [(unquote(urlsplit(link).path.rpartition("/")[2]), link) for link in anchors.links]


class _Anchors(HTMLParser):
    """Collects the hrefs of a page, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]
