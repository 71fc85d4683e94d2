"""Downloads the sdist, resumes an interrupted download, and checks the hash."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError

from .index import Index, find_index
from .lock import file_lock
from .recipe import Recipe
from .report import BuildError, BuildEvent, Report

CHUNK = 1 << 20  # bytes
ATTEMPTS = 5  # failures in a row without a new byte
LATER = (408, 429, 500, 502, 503, 504)  # HTTP statuses to retry
OFFLINE = (
    "offline? set PIP_INDEX_URL to a mirror within reach, or download {sdist} elsewhere "
    "and set DECANT_LLAMA_SDIST to its path"
)

T = TypeVar("T")


def fetch_sdist(
    recipe: Recipe,
    cache: Path,
    *,
    env: Mapping[str, str],
    report: Report,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the path of the recipe's sdist with a checked hash: the user's, cached, or downloaded.

    Raises BuildError.
    """
    if named := env.get("DECANT_LLAMA_SDIST"):
        path = Path(named).expanduser()
        if not path.is_file():
            raise BuildError(f"DECANT_LLAMA_SDIST names `{path}`, which is not a file")
        verify(path, recipe, report=report)
        return path
    path = cache / "sdists" / recipe.sdist
    waiting = BuildEvent("wait", f"another process is fetching {recipe.sdist}; waiting for it")
    with file_lock(path.with_name(f"{path.name}.lock"), waiting=lambda: report(waiting)):
        if path.exists():
            verify(path, recipe, report=report)
        else:
            part = path.with_name(f"{path.name}.part")
            download(recipe, part, index=find_index(env), report=report, sleep=sleep)
            verify(part, recipe, report=report)
            part.replace(path)
    return path


def verify(path: Path, recipe: Recipe, *, report: Report) -> None:
    """Raise BuildError unless the sha256 of `path` is the recipe's."""
    report(BuildEvent("verify", f"checking the sha256 of {path.name}"))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != recipe.sha256:
        raise BuildError(
            f"`{path}` is not the expected {recipe.sdist}:\n"
            f"  expected sha256 {recipe.sha256}, {recipe.nbytes} bytes\n"
            f"  got sha256      {digest.hexdigest()}, {path.stat().st_size} bytes",
            hint="the file was left where it is: look at it, delete it, and try again",
        )
    report(BuildEvent("verify", f"{recipe.sdist} is as pinned", recipe.nbytes, recipe.nbytes))


def download(
    recipe: Recipe,
    part: Path,
    *,
    index: Index,
    report: Report,
    sleep: Callable[[float], None],
) -> None:
    """Download into `part`, resuming after the bytes it already has.

    Returns when the size is reached or the server has no more bytes; the caller checks the hash.
    """
    if _size(part) >= recipe.nbytes:
        return
    retries = _Retries(recipe, index, sleep)
    link = retries.run(lambda: index.link(recipe.project, recipe.sdist), lambda: 0)
    retries.run(lambda: _continue(recipe, part, link, index, report), lambda: _size(part))


def _continue(recipe: Recipe, part: Path, link: str, index: Index, report: Report) -> None:
    """Append the missing bytes to `part`; raise a ConnectionError if the stream ends early."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = index.open(link, headers)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            error.close()  # there are no bytes after our last one
            return
        raise
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT and _starts_at(response, have)
        start = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            got = _copy(response, file.write, start, recipe, report)
    announced = response.headers.get("Content-Length")
    if announced is not None and got < int(announced):
        raise ConnectionError(f"the connection closed after {start + got} bytes")


def _copy(
    response: HTTPResponse,
    write: Callable[[bytes], object],
    start: int,
    recipe: Recipe,
    report: Report,
) -> int:
    """Copy the body, report progress, and return the number of bytes copied."""
    done = start
    report(BuildEvent("fetch", f"fetching {recipe.sdist}", done, recipe.nbytes))
    while chunk := response.read(CHUNK):
        write(chunk)
        done += len(chunk)
        report(BuildEvent("fetch", f"fetching {recipe.sdist}", done, recipe.nbytes))
    return done - start


def _starts_at(response: HTTPResponse, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


class _Retries:
    """Retries after network errors, until ATTEMPTS in a row bring no new byte."""

    def __init__(self, recipe: Recipe, index: Index, sleep: Callable[[float], None]) -> None:
        self.recipe = recipe
        self.index = index
        self.sleep = sleep

    def run(self, action: Callable[[], T], progress: Callable[[], int]) -> T:
        """Return the result of `action`; `progress` counts the bytes, including those of failed
        tries.
        """
        failures, before = 0, progress()
        while True:
            try:
                return action()
            except (HTTPException, OSError) as error:
                if isinstance(error, HTTPError):
                    error.close()
                self._give_up_if_final(error)
                failures = failures + 1 if progress() == before else 1
                before = progress()
                if failures == ATTEMPTS:
                    raise self._failed(error) from error
                self.sleep(2 ** (failures - 1))

    def _give_up_if_final(self, error: Exception) -> None:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(error, HTTPError):
            if error.code not in LATER:
                raise self._failed(error) from error
        elif isinstance(reason, ssl.SSLCertVerificationError):
            raise BuildError(
                f"`{self.index.url}` shows a certificate that is not trusted here: {reason}",
                hint="set SSL_CERT_FILE to your organisation's CA bundle",
            ) from error
        elif isinstance(error, OSError) and not _is_network(error):
            raise error  # waiting does not help with a full disk

    def _failed(self, error: Exception) -> BuildError:
        return BuildError(
            f"{self.recipe.sdist} could not be fetched from `{self.index.url}`: {error}",
            hint=OFFLINE.format(sdist=self.recipe.sdist),
        )


def _is_network(error: OSError) -> bool:
    return isinstance(error, (URLError, ConnectionError, TimeoutError, ssl.SSLError))
