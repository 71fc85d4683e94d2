"""Errors that clients receive, in the form of the API that they use."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

Form = Literal["openai", "anthropic", "ollama"]
TYPES: dict[int, tuple[str, str]] = {  # OpenAI's name, Anthropic's
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    408: ("timeout_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    501: ("not_supported_error", "invalid_request_error"),
    503: ("unavailable_error", "overloaded_error"),
}
ANTHROPIC = ("/v1/messages", "/messages")
OLLAMA = "/api/"


@dataclass
class ApiError(Exception):
    """A request that is refused or cannot be answered."""

    status: int
    message: str
    code: str | None = None
    """OpenAI's error code: model_not_found, context_length_exceeded …"""
    retry_after: int | None = None
    """Seconds to wait before another try."""
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())

    def body(self, form: Form) -> bytes:
        """The error as JSON, in the form of an API."""
        openai, anthropic = TYPES.get(self.status, ("server_error", "api_error"))
        if form == "ollama":
            return encoded({"error": self.message})
        if form == "anthropic":
            return encoded({"type": "error", "error": {"type": anthropic, "message": self.message}})
        error = {"message": self.message, "type": openai, "param": None, "code": self.code}
        return encoded({"error": error})

    def head(self) -> list[tuple[bytes, bytes]]:
        """The response's headers, except Content-Length."""
        found = [(b"content-type", b"application/json"), *self.headers]
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        return found

    def event(self, form: Form) -> bytes:
        """The error as the last event of a stream."""
        body = self.body(form)
        if form == "ollama":
            return body + b"\n"
        name = b"event: error\n" if form == "anthropic" else b""
        return b"\n\n" + name + b"data: " + body + b"\n\n"


class EngineGoneError(ApiError):
    """The engine ended before its answer was complete."""

    def __init__(self, message: str = "the engine ended while it answered; try again") -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, message, "unavailable", 1)


class NotThereError(EngineGoneError):
    """The engine could not be reached; no part of the request was sent."""

    def __init__(self) -> None:
        super().__init__("the engine cannot be reached; try again")


class ClientGoneError(Exception):
    """The client has disconnected; the answer is not needed any more."""


def form_of(path: str) -> Form:
    """The API that a path belongs to."""
    if path.startswith(OLLAMA) or path == OLLAMA.rstrip("/"):
        return "ollama"
    return "anthropic" if path.startswith(ANTHROPIC) else "openai"


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace")


def bad_request(message: str, *, code: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code)


def unavailable(message: str, *, retry_after: int = 1) -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, "unavailable", retry_after)
