"""Chats with a served model whose prompts are long enough to be kept on disk."""

from __future__ import annotations

from typing import Any

from tests.runtime.gateway.conftest import Served

LONG = "Where does a bee live? " * 12
"""More tokens than a prompt needs to be kept."""


def asked(served: Served, model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": LONG}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}
    status, found = served.ask("/v1/chat/completions", body)
    assert status == 200, found
    return found


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def end(served: Served) -> None:
    """End the server as a service manager does."""
    served.process.terminate()
    assert served.process.wait(20) == 0
