"""Encoder-decoder models served: clients that leave, the order of those who wait, and the end."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.engine.socket_connection import SocketConnection
from tests.support.encoder_decoders import COMPLETIONS, GREEDY, Served, serving

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

LONG = {"prompt": "th " * 1000, **GREEDY}
"""With a context of 4096, an answer that takes many seconds and does not end by itself."""
SOON_S = 1.0


@pytest.fixture(scope="module")
def slow(made, toolchain) -> Iterator[Served]:
    """A server that can be kept busy for long."""
    with serving(made["T5"].gguf, toolchain.folder, context=4096) as served:
        yield served


@pytest.fixture
def doomed(made, toolchain) -> Iterator[Served]:
    """The same, to be ended."""
    with serving(made["T5"].gguf, toolchain.folder, context=4096) as served:
        yield served


def is_generating(slow: Served) -> SocketConnection:
    """A client that has read the first piece of a long answer."""
    connection = slow.send("POST", COMPLETIONS, {**LONG, "stream": True})
    assert connection.getresponse().readline().startswith(b"data: ")
    return connection


def took_s(slow: Served) -> float:
    """How long a short request takes."""
    began = time.monotonic()
    slow.post(COMPLETIONS, {"prompt": "th", "max_tokens": 1})
    return time.monotonic() - began


def test_the_long_answer_is_long(slow):
    """Without which the tests below would show nothing."""
    with is_generating(slow) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(took_s, slow)
        time.sleep(2 * SOON_S)
        is_done = waiting.done()
        client.close()

    assert not is_done


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "at once"])
def test_a_client_that_leaves_frees_the_engine(slow, stream):
    connection = slow.send("POST", COMPLETIONS, {**LONG, "stream": stream})
    if stream:
        connection.getresponse().readline()
    else:
        time.sleep(0.7)  # the encoder needs less
    connection.close()

    assert took_s(slow) < SOON_S


def test_a_client_that_leaves_stops_the_encoder_too(slow):
    body = {"prompt": "th " * 2040, "max_tokens": 1}
    began = time.monotonic()
    slow.post(COMPLETIONS, body)
    whole_s = time.monotonic() - began
    connection = slow.send("POST", COMPLETIONS, body)
    time.sleep(0.1)
    connection.close()

    assert took_s(slow) < whole_s / 2


def test_a_client_that_leaves_while_it_waits_is_never_served(slow):
    with is_generating(slow) as first:
        second = slow.send("POST", COMPLETIONS, LONG)
        time.sleep(0.1)
        second.close()
        time.sleep(0.3)
        first.close()

        assert took_s(slow) < SOON_S


def test_requests_are_answered_in_the_order_they_came(slow):
    body = {"prompt": "th", "max_tokens": 1500, **GREEDY}
    with is_generating(slow) as first:
        waiting = []
        for _ in range(5):
            waiting.append(slow.send("POST", COMPLETIONS, body))
            time.sleep(0.1)
        first.close()
    counts = []
    while not counts or counts[-1] < len(waiting):
        answered = select.select([client.sock for client in waiting], [], [], 0)[0]
        are_answered = [client.sock in answered for client in waiting]
        counts.append(sum(are_answered))
        assert are_answered == [place < counts[-1] for place in range(len(waiting))]
        time.sleep(0.005)

    assert 1 in counts  # or nothing was seen of an order
    for client in waiting:
        client.close()


def test_it_dies_with_its_standard_input_in_the_middle_of_an_answer(doomed):
    with is_generating(doomed):
        doomed.process.stdin.close()

        assert doomed.process.wait(SOON_S) == 0


def test_sigterm_ends_it_in_the_middle_of_an_answer(doomed):
    with is_generating(doomed):
        doomed.process.terminate()

        assert doomed.process.wait(SOON_S) == -signal.SIGTERM


def test_sigterm_ends_it_in_the_middle_of_the_encoder(doomed):
    doomed.send("POST", COMPLETIONS, LONG)
    time.sleep(0.1)
    doomed.process.terminate()

    assert doomed.process.wait(SOON_S) == -signal.SIGTERM
