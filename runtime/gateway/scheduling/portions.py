"""Long lists of texts, handed to a child in portions of half its slots.

A child takes all texts of a request at once, and whoever comes next waits for the last of them.
Between portions it is others' turn.
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
"""Where a route has its list, the first that is there."""
AHEAD = 3  # portions that are asked for at once: a child need not wait for the next
Result = TypeVar("Result")
RESULTS = ("data", "results", "choices")
"""Where an answer has one entry for each text, with its `index`."""
SCORES = ("relevance_score", "score")
"""What ranked texts are sorted by."""


def list_of(route: str, body: Mapping[str, Any]) -> str | None:
    """The field with several texts; None where there is one."""
    name = next((name for name in FIELDS.get(route, ()) if name in body), None)
    return name if name is not None and texts_in(body[name]) > 1 else None


def cut(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


class Joined:
    """The answers to the portions, as one."""

    def __init__(self, size: int | None = None, *, as_it_is: bool = False) -> None:
        """Nothing has been answered. size: of each vector, as `shortened` has it."""
        self.size, self.as_it_is = size, as_it_is
        self.whole: dict[str, Any] = {}
        self.entries: list[Any] = []
        self.is_bare = False
        """Whether the answer is a list alone, as llama.cpp's own routes have it."""

    def add(self, text: bytes, offset: int) -> None:
        """The next answer, whose first entry is that of text number `offset`."""
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
        """All in the form of the first; top: how many of those that are ranked."""
        score = next((name for name in SCORES if self.entries and name in self.entries[0]), None)
        if score is not None:
            self.entries.sort(key=lambda entry: number(entry.get(score)), reverse=True)
            self.entries = self.entries[: top if isinstance(top, int) and top > 0 else None]
        if self.is_bare:
            return encoded(self.entries)
        name = next((name for name in RESULTS if name in self.whole), RESULTS[0])
        return encoded({**self.whole, name: self.entries})


def per_text(body: Mapping[str, Any]) -> int:
    """How many answers each text has."""
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
    """What each gives, one after the other; the next one waits for its turn meanwhile.

    Leaving the block breaks off what is not finished.
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
    """An event of a stream with its entries' numbers moved on; empty for the one that ends it."""
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
    """A stream's events, without the empty line between them."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            yield event
    if rest.strip():
        yield rest
