"""What a child sends, as it is handed on."""

from __future__ import annotations

import asyncio

import h11
import pytest

from runtime.gateway.api_errors import EngineGoneError
from runtime.gateway.scheduling.upstream import Reply

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def reply_of(*blocks: bytes) -> tuple[Reply, asyncio.StreamReader]:
    """A reply whose head and first block have come; the others are yet to be fed."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    http.send(h11.EndOfMessage())
    reader = asyncio.StreamReader()
    reader.feed_data(HEAD)
    reply = Reply(reader, None, http)
    await reply.read_head()
    reader.feed_data(b"".join(blocks))
    return reply, reader


def test_pieces_that_come_together_are_handed_on_together():
    async def run() -> list[bytes]:
        reply, reader = await reply_of(chunk(b"one "), chunk(b"two "), chunk(b"three"))
        chunks = reply.chunks()
        found = [await chunks.__anext__()]
        reader.feed_data(chunk(b"four") + b"0\r\n\r\n")
        found += [part async for part in chunks]
        assert reply.is_finished
        return found

    assert asyncio.run(run()) == [b"one two three", b"four"]


def test_what_came_before_a_child_broke_off_is_handed_on():
    async def run() -> list[bytes]:
        found = []
        reply, reader = await reply_of(chunk(b"one "), chunk(b"two "))
        reader.feed_eof()
        with pytest.raises(EngineGoneError):
            async for part in reply.chunks():
                found.append(part)  # noqa: PERF401 - what came before the error counts
        return found

    assert asyncio.run(run()) == [b"one two "]
