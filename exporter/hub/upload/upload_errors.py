"""Turns what goes wrong in an upload into errors that say what to do, without the token.

The library's errors are never chained: their messages have signed addresses and the server's words,
and DECANT_DEBUG=1 would print them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from exporter.core.errors import DecantError, UploadError
from exporter.core.events import Note, Report
from exporter.core.terminal_text import without_controls
from exporter.hub.endpoints import Endpoint
from exporter.hub.source import words
from exporter.hub.timeouts import Limits

T = TypeVar("T")
TRIES = 5
"""Attempts of one request, and of the commit while others commit to the same repo."""
PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed a moment later."""
CONFLICTS = (409, 412)
"""HTTP statuses of a commit onto a head that is no longer the head."""
AGAIN = "run the same command again: what has arrived is not sent a second time"
TOKENS = "https://huggingface.co/settings/tokens"
SHOWN = 300  # characters of a server's message
ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True, slots=True)
class UploadErrors:
    """The facts of an upload that its error messages name."""

    endpoint: Endpoint
    repo: str
    limits: Limits
    report: Report
    token: str = field(repr=False)

    def explained(self, error: Exception, doing: str) -> DecantError:
        """The error for the user. doing: the step, such as `creating org/name`."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        host = self.endpoint.name
        match error:
            case DecantError():
                return error
            case RuntimeError() if isinstance(error.__cause__, Exception):  # of a large file
                return self.explained(error.__cause__, doing)
            case HfHubHTTPError():
                return self.of_status(error, doing)
            case ValueError() if str(error).startswith("Invalid metadata"):
                return UploadError(
                    f"{doing}: {host} refuses the card: {self.plain(str(error))}",
                    hint="a licence or language in the GGUF's metadata is none that it knows",
                )
            case httpx2.HTTPError():
                return UploadError(f"{doing}: {host} {words(error)}", hint=AGAIN)
            case _:
                return UploadError(f"{doing}: {host} answers {self.plain(str(error))}", hint=AGAIN)

    def of_status(self, error: Exception, doing: str) -> UploadError:
        """The error for an HTTP status that refuses something."""
        status, owner = status_of(error), self.repo.partition("/")[0]
        reason = self.plain(str(getattr(error, "server_message", None) or ""))
        reason = f": {reason}" if reason else ""
        where = f"{doing}: {self.endpoint.name}"
        match status:
            case 401:
                message = f"{where} does not accept the token (401){reason}"
                hint = f"`hf auth login`, or HF_TOKEN, with a token that may write: {TOKENS}"
            case 403:
                message = f"{where} does not allow it with this token (403){reason}"
                hint = f"a token with write access to {owner}: {TOKENS}; or another name"
            case 404:
                message = f"{where} has no user, organization or repo {self.repo} (404){reason}"
                hint = f"is {owner!r} spelled right, and may the token see it?"
            case 413:
                message = f"{where} takes no file or commit as large as this (413){reason}"
                hint = "export it in parts: decant export … --split-max-size 20GB"
            case 409 | 412:
                message = (
                    f"{where}: others commit to {self.repo} at the same time ({status}){reason}"
                )
                hint = AGAIN
            case _:
                message = f"{where} answers {status}{reason}"
                hint = AGAIN if status in PASSING else "the message above is the hub's"
        return UploadError(message, hint=hint)

    def plain(self, text: str) -> str:
        """A server's text on one line, without the token and without addresses."""
        line = " ".join(without_controls(text).replace(self.token, "***").split())
        line = ADDRESS.sub(lambda found: found[0].partition("?")[0], line)
        return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"

    def patiently(self, call: Callable[[], T], doing: str) -> T:
        """The call's result, after several tries where one fails. Raises the explained error."""
        for left in reversed(range(TRIES)):
            try:
                return call()
            except library_errors() as error:
                if not is_passing(error) or not left:
                    raise self.explained(error, doing) from None
                self.wait(error, TRIES - left)
        raise AssertionError("the last try returns or raises")

    def wait(self, error: Exception, tried: int) -> None:
        """Pause before the next try, for as long as the server asks, or longer each time."""
        pause = min(self.limits.backoff_s * 2 ** (tried - 1), self.limits.backoff_max_s)
        retry_after = getattr(getattr(error, "response", None), "headers", {}).get(
            "Retry-After", ""
        )
        if retry_after.isdecimal():
            pause = max(pause, min(float(retry_after), self.limits.retry_after_max_s))
        status = status_of(error)
        what = f"answers {status}" if status else words(error)
        self.report(Note(f"{self.endpoint.name} {what}: again in {pause:.1f} s"))
        time.sleep(pause)


def library_errors() -> tuple[type[Exception], ...]:
    """The kinds of errors that huggingface_hub and its HTTP client raise in an upload."""
    import httpx2

    return (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, RuntimeError, OSError)


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 0 if no answer came."""
    found = getattr(getattr(error, "response", None), "status_code", 0)
    return found if isinstance(found, int) else 0


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    import httpx2

    return isinstance(error, httpx2.TransportError) or status_of(error) in PASSING
