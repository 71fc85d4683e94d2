"""Reads one file from one endpoint: a range, checked to belong to the planned file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from exporter.hub.access_token import HUB, TokenRule, origin
from exporter.hub.endpoints import Endpoint
from exporter.hub.pull_plan import SHA256, Plan, PlannedFile, retry_after
from exporter.hub.timeouts import Limits

if TYPE_CHECKING:
    import httpx2

HOPS = 6  # redirects followed
PORTAL = (b"<!doctype html", b"<html")
NO_ADDRESS = "redirects to something that is not a web address"
BUSY = (429, 503)
GONE = (401, 403, 404, 410)  # answers of file stores to a signed address that has expired


class RefusedError(Exception):
    """This endpoint does not have the planned file; asking again is pointless."""


class BusyError(Exception):
    """The endpoint asks to come back later, or with fewer connections."""

    def __init__(self, problem: str, response: httpx2.Response) -> None:
        super().__init__(problem)
        self.origin = origin(str(response.url))
        self.wait_s = retry_after(response.headers.get("Retry-After"))
        """Seconds it asks for; 0 if it does not say."""


class DeniedError(RefusedError):
    """The endpoint denies the file, or one more connection for it.

    The message is right for an endpoint that has sent no bytes; for any other, `busy` is right.
    """

    def __init__(self, message: str, busy: BusyError) -> None:
        """Error with both readings of one answer: `message` (denied) and `busy`."""
        super().__init__(message)
        self.busy = busy


class CutError(Exception):
    """The answer broke off, stalled, or reported a passing error."""


class NoRangesError(Exception):
    """The endpoint sends the file only as a whole."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Client, token rule and headers that all requests of a pull share."""

    client: httpx2.Client
    rule: TokenRule
    limits: Limits
    headers: Mapping[str, str]
    """Headers of huggingface_hub, without Authorization."""


class Source:
    """Opens ranges of one file at one endpoint. Threads may share it."""

    def __init__(self, plan: Plan, file: PlannedFile, endpoint: Endpoint, wire: Wire) -> None:
        self.plan, self.file, self.endpoint, self.wire = plan, file, endpoint, wire
        self.revisions = [plan.commit, "main"]
        """Revisions to ask for; `main` is fine if its hash is the planned one."""
        self.location: str | None = None
        """Final address of the bytes, often signed and valid for an hour."""
        self.is_large = len(file.etag) == SHA256
        """Whether it is an LFS file, which hubs often keep on another host."""
        self.has_ranges = True
        self.lock = threading.Lock()

    def url(self) -> str:
        """The address of the file at this endpoint."""
        ref = self.plan.ref
        if self.endpoint.kind == "modelscope":
            repo = self.endpoint.repo or ref.repo
            return (
                f"{self.endpoint.url}/api/v1/models/{repo}/repo"
                f"?Revision=master&FilePath={quote(self.file.path)}"
            )
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            ref.repo,
            self.file.path,
            repo_type=ref.repo_type,
            revision=self.revisions[0],
            endpoint=self.endpoint.url,
        )

    @contextmanager
    def opened(self, start: int, end: int) -> Iterator[httpx2.Response]:
        """Open bytes `start` to `end`, or the whole file if that is the range.

        Raises RefusedError (DeniedError), BusyError, CutError or NoRangesError, and the client's
        own errors.
        """
        found = self.location
        response = self.request(found, start, end) if found else self.resolve(start, end)
        if found and (response.status_code in GONE or response.is_redirect):
            response.close()  # the address has expired: resolve it again
            self.location = None
            response = self.resolve(start, end)
        try:
            check_status(response)
            self.check_body(response, start, end)
            yield response
        finally:
            response.close()

    def resolve(self, start: int, end: int) -> httpx2.Response:
        """Follow redirects by hand: the token stays with its host, the hash must match.

        Raises RefusedError for another file or endless redirects.
        """
        home = url = self.url()
        is_matched, with_token = self.endpoint.kind == "modelscope", True
        for _ in range(HOPS):
            response = self.request(url, start, end, with_token=with_token)
            try:
                is_matched = self.matches(response, is_matched=is_matched)
                target = self.next_hop(response, url, home)
                if target is None and not is_matched:
                    refuse_nameless(response)
            except RefusedError:
                response.close()
                raise
            if target is None:
                if origin(url) != origin(home):
                    self.location = url
                return response
            response.close()
            if target == self.url():
                home, with_token = target, True
            elif origin(target) != origin(url):
                with_token = False
            url = target
        raise RefusedError("redirects in a circle")

    def next_hop(self, response: httpx2.Response, url: str, home: str) -> str | None:
        """The next address to request; None if this response is the answer.

        Raises RefusedError when a mirror redirects to the hub.
        """
        if response.status_code == 404:  # noqa: PLR2004 - HTTP
            return self.url() if self.next_revision(home) else None
        if not response.is_redirect:
            return None
        target = address(url, response.headers.get("Location", ""))
        if not self.leads_to_hub(target):
            return target
        if self.next_revision(home):
            return self.url()
        raise RefusedError("does not have it and sends us to the hub")

    def request(
        self, url: str, start: int, end: int, *, with_token: bool = False
    ) -> httpx2.Response:
        import httpx2

        headers = {**self.wire.headers, "Accept-Encoding": "identity"}
        if start or end < self.file.size:
            headers["Range"] = f"bytes={start}-{end - 1}"
        token = self.wire.rule.token_for(url) if with_token else None
        if token:
            headers["Authorization"] = f"Bearer {token}"
        limits = self.wire.limits
        timeout = httpx2.Timeout(limits.stall_s, connect=limits.connect_s, pool=None)
        try:
            request = self.wire.client.build_request("GET", url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL:  # its message contains parts of the address
            raise RefusedError(NO_ADDRESS) from None
        return self.wire.client.send(request, stream=True, follow_redirects=False, auth=None)

    def next_revision(self, tried: str) -> bool:
        """Switch to the next revision that may hold the same bytes, if there is one."""
        with self.lock:
            if self.url() != tried:
                return True  # another thread switched
            if self.endpoint.kind == "modelscope" or len(self.revisions) == 1:
                return False
            self.revisions = self.revisions[1:]
            return True

    def leads_to_hub(self, target: str) -> bool:
        """Whether a mirror redirects to the hub, because it lacks the file."""
        return not self.endpoint.is_reference and urlsplit(target).hostname in HUB

    def matches(self, response: httpx2.Response, *, is_matched: bool) -> bool:
        """Whether the hub's headers name the planned content. Raises RefusedError if they
        differ.
        """
        headers = response.headers
        if response.status_code >= 400:  # noqa: PLR2004 - HTTP
            return is_matched
        etag = headers.get("X-Linked-Etag")
        if etag is None and "X-Repo-Commit" in headers:
            etag = headers.get("ETag")
        if etag is None:
            if is_matched or response.is_redirect:
                return is_matched
            etag = headers.get("ETag")
        self.refuse_page(response)
        if etag is None:
            return False
        if etag.strip().removeprefix("W/").strip('"') != self.file.etag:
            raise RefusedError("has another version of it")
        size = headers.get("X-Linked-Size")
        if size is not None and size != str(self.file.size):
            raise RefusedError(f"has it with {size} bytes instead of {self.file.size}")
        return True

    def refuse_page(self, response: httpx2.Response) -> None:
        """Raise DeniedError for a web page in place of a file."""
        if is_html(response) and not self.file.path.endswith((".html", ".htm")):
            raise DeniedError(
                "sends an HTML page in its place: a login page or a portal?",
                BusyError("sends an HTML page", response),
            )

    def check_body(self, response: httpx2.Response, start: int, end: int) -> None:
        """Check that a body is the requested range.

        Raises RefusedError for another one, NoRangesError for the whole file.
        """
        headers, size = response.headers, self.file.size
        self.refuse_page(response)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise RefusedError("sends it compressed")
        length = headers.get("Content-Length")
        if response.status_code == 206:  # noqa: PLR2004 - HTTP
            if headers.get("Content-Range") != f"bytes {start}-{end - 1}/{size}":
                raise RefusedError("sends another range than asked")
        elif length is not None and length != str(size):
            raise RefusedError(f"has it with {length} bytes instead of {size}")
        elif start or end < size:
            raise NoRangesError


def address(here: str, location: str) -> str:
    """The target of a redirect. Raises RefusedError for a bad one, without quoting it."""
    try:
        target = urljoin(here, location)
        parts = urlsplit(target)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web, target = False, ""
    if not is_web:
        raise RefusedError(NO_ADDRESS)
    return target


def refuse_nameless(response: httpx2.Response) -> None:
    """Raise RefusedError for a success whose headers name no version of the file."""
    if response.is_success:
        raise RefusedError("does not say which version of the file it has")


def check_status(response: httpx2.Response) -> None:
    """Check that an answer has a body.

    Raises BusyError, CutError, DeniedError or RefusedError for other statuses.
    """
    status = response.status_code
    if status in BUSY:
        raise BusyError(f"answers {status}", response)
    if status >= 500 or status == 408:  # noqa: PLR2004 - HTTP
        raise CutError(f"answers {status}")
    if status == 416:  # noqa: PLR2004 - HTTP: it ends before the range begins
        raise RefusedError("has another version of it")
    if status in (401, 403):
        message = f"does not let us have it ({status}): gated or private?"
        if status == 401 or "X-Error-Code" in response.headers:  # noqa: PLR2004 - the hub's word
            raise RefusedError(message)
        raise DeniedError(message, BusyError(f"answers {status}", response))
    if status >= 300:  # noqa: PLR2004 - HTTP
        raise RefusedError("does not have it" if status == 404 else f"answers {status}")  # noqa: PLR2004


def is_html(response: httpx2.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith(("text/html", "application/xhtml"))


def sniff(start: bytes, path: str) -> None:
    """Raise RefusedError for a file whose first bytes are of another kind."""
    if path.endswith(".gguf") and len(start) >= 4 and start[:4] != b"GGUF":  # noqa: PLR2004
        raise RefusedError("sends something that is not a GGUF")
    if start[:16].lstrip().lower().startswith(PORTAL) and not path.endswith((".html", ".htm")):
        raise RefusedError("sends an HTML page in its place: a login page or a portal?")


def words(error: Exception) -> str:
    """Describe a connection's error, without its address, which may be signed."""
    import httpx2

    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return "cannot be reached"
        case httpx2.TimeoutException():
            return "stalls"
        case httpx2.TransportError():
            return "breaks off"
        case _:
            return type(error).__name__


def modelscope_files(endpoint: Endpoint, plan: Plan, wire: Wire) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each file that ModelScope has under the repo's name; empty if unknown."""
    import httpx2

    url = f"{endpoint.url}/api/v1/models/{endpoint.repo or plan.ref.repo}/repo/files"
    try:
        response = wire.client.get(
            url,
            params={"Revision": "master", "Recursive": "True"},
            headers=dict(wire.headers),
            timeout=wire.limits.connect_s,
        )
        response.raise_for_status()
        files = response.json()["Data"]["Files"]
        return {file["Path"]: (file["Size"], file["Sha256"]) for file in files if "Sha256" in file}
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return {}
