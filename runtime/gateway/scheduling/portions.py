"""Splits a long list of texts into portions of half the engine's slots.

An engine takes all texts of a request at once, and the next request waits for the last text.
Between two portions other requests have their turn.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from runtime.engine.openai_client import listed, mapped, number
from runtime.gateway.api_errors import encoded
from runtime.gateway.body import texts_in
from runtime.gateway.vectors import shortened

FIELDS = {
    "/v1/embeddings": ("input", "content"), "/embedding": ("content", "input"),
    "/v1/rerank": ("documents", "texts"),
    "/v1/completions": ("prompt",), "/completion": ("prompt",),
}  # fmt: skip
"""The field with a route's list of texts: the first that is present."""
AHEAD = 3  # portions in flight, so that the engine does not idle between two
Result = TypeVar("Result")
RESULTS = ("data", "results", "choices")
"""The field of an answer with one entry for each text, numbered by `index`."""
SCORES = ("relevance_score", "score")
"""The sort key of ranked texts."""


def list_of(route: str, body: Mapping[str, Any]) -> str | None:
    """The name of the field with several texts; None when there is one text."""
    name = next((name for name in FIELDS.get(route, ()) if name in body), None)
    return name if name is not None and texts_in(body[name]) > 1 else None


def cut(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


class Joined:
    """Joins the answers to all portions into one."""

    def __init__(self, size: int | None = None, *, as_it_is: bool = False) -> None:
        """Begin without answers. size, as_it_is: shorten each vector, see `shortened`."""
        self.size, self.as_it_is = size, as_it_is
        self.whole: dict[str, Any] = {}
        self.entries: list[Any] = []
        self.is_bare = False
        """Whether the answer is a bare list, as on llama.cpp's own routes."""

    def add(self, text: bytes, offset: int) -> None:
        """Add the next answer; its first entry belongs to text number `offset`."""
        found = json.loads(text)
        self.is_bare = isinstance(found, list)
        if self.size is not None and isinstance(found, dict):
            found = shortened(found, self.size, as_it_is=self.as_it_is)
        whole = {} if self.is_bare else mapped(found)
        entries = found if self.is_bare else next((whole[k] for k in RESULTS if k in whole), [])
        for entry in listed(entries):
            entry["index"] = int(number(entry.get("index"))) + offset
            self.entries.append(entry)
        usage = summed(mapped(self.whole.get("usage")), mapped(whole.get("usage")))
        self.whole = {**whole, **({"usage": usage} if usage else {})}

    def text(self, top: object) -> bytes:
        """The whole answer as JSON, with the last portion's fields; top: ranked texts to keep."""
        score = next((name for name in SCORES if self.entries and name in self.entries[0]), None)
        if score is not None:
            self.entries.sort(key=lambda entry: number(entry.get(score)), reverse=True)
            self.entries = self.entries[: top if isinstance(top, int) and top > 0 else None]
        if self.is_bare:
            return encoded(self.entries)
        name = next((name for name in RESULTS if name in self.whole), RESULTS[0])
        return encoded({**self.whole, name: self.entries})


def per_text(body: Mapping[str, Any]) -> int:
    """The number of answers to each text."""
    return max(1, int(number(body.get("n", body.get("n_cmpl", 1)))))


def summed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value + one.get(name, 0) if isinstance(value, int | float) else value
        for name, value in other.items()
    }


@asynccontextmanager
async def in_order(
    works: Sequence[Callable[[], Coroutine[Any, Any, Result]]],
) -> AsyncIterator[AsyncIterator[Result]]:
    """Yields the results in order; meanwhile the next portions wait in the queue.

    Leaving the block cancels unfinished portions.
    """
    tasks = deque(asyncio.ensure_future(work()) for work in works[:AHEAD])

    async def results() -> AsyncIterator[Result]:
        for place in range(len(works)):
            result = await tasks[0]
            tasks.popleft()
            if place + AHEAD < len(works):
                tasks.append(asyncio.ensure_future(works[place + AHEAD]()))
            yield result

    try:
        yield results()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def renumbered(event: bytes, offset: int) -> bytes:
    """An event of a stream with `offset` added to its indices; empty for the final [DONE]."""
    head, colon, text = event.partition(b"data: ")
    if not colon or text.strip() == b"[DONE]":
        return b"" if colon else event
    try:
        found = json.loads(text)
    except ValueError:
        return event
    for entry in [found, *listed(mapped(found).get("choices"))]:
        if isinstance(entry, dict) and isinstance(entry.get("index"), int):
            entry["index"] += offset
    return head + colon + encoded(found)


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events of a stream, without the blank lines between them."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            yield event
    if rest.strip():
        yield rest
