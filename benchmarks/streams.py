"""Asks a server for many streamed answers at once, from one process without threads.

    python benchmarks/streams.py PORT [--key KEY] [--model NAME] [--streams N] [--tokens N]

Prints the tokens a second of all streams together and when their first tokens came, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

PROMPT = "Tell me about the capital of France, its rivers, and what people eat there in winter."
LINE_MAX = 1 << 20  # bytes
OK = b" 200 "


@dataclass(frozen=True, slots=True)
class Target:
    """A server that speaks OpenAI's API on this machine."""

    port: int
    key: str = ""
    model: str = "base"


@dataclass(frozen=True, slots=True)
class Stream:
    """When the pieces of one answer came."""

    asked: float
    first: float
    last: float
    pieces: int


async def stream(target: Target, number: int, tokens: int) -> Stream:
    """Ask for one answer of `tokens` tokens. Raises OSError for a refusal or a cut answer."""
    body = {
        "model": target.model, "prompt": f"{number} {PROMPT}", "max_tokens": tokens,
        "stream": True, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {target.key}\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    asked = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=LINE_MAX)
    try:
        writer.write(head.encode() + data)
        status = await reader.readline()
        if OK not in status:
            raise OSError(f"the server said {status!r}: {(await reader.read(2000))!r}")
        first = last = 0.0
        pieces = 0
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                last = time.monotonic()
                first = first or last
                pieces += 1
            elif line.startswith(b"data: [DONE]"):
                return Stream(asked, first, last, pieces)
        raise OSError(f"an answer ended after {pieces} pieces")
    finally:
        writer.close()


async def ask_all(target: Target, streams: int, tokens: int) -> list[Stream]:
    return list(await asyncio.gather(*(stream(target, n, tokens) for n in range(streams))))


def measure(target: Target, streams: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of so many streams together, and the seconds until first tokens."""
    found = asyncio.run(ask_all(target, streams, tokens))
    firsts = sorted(one.first - one.asked for one in found)
    took = max(one.last for one in found) - min(one.asked for one in found)
    return {
        "tokens_per_s": streams * tokens / took,
        "first_token_s": statistics.median(firsts),
        "last_first_token_s": firsts[-1],
        "pieces": sum(one.pieces for one in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="base")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    target = Target(options.port, options.key, options.model)
    print(json.dumps(measure(target, options.streams, options.tokens)))


if __name__ == "__main__":
    main()
