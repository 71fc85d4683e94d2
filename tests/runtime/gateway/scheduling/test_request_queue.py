"""Whose turn it is: bounds, epochs, and nobody who is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from runtime.gateway.api_errors import ApiError, unavailable
from runtime.gateway.scheduling.request_queue import Clients, Gate
from runtime.gateway.settings import Settings

A, B, C = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def running(test: Callable[[Gate, Clock], Coroutine[Any, Any, None]], capacity=2, **settings):
    clock = Clock()

    async def run() -> None:
        await test(Gate(capacity, Settings(**settings), clock), clock)

    asyncio.run(run())


def asking(gate: Gate, voice, cost=1, client="") -> asyncio.Task[Any]:
    return asyncio.ensure_future(gate.admit(voice, cost, client))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_slots_are_given_out_and_taken_back():
    async def test(gate, clock):
        first, second, third = (asking(gate, A) for _ in range(3))
        await settled()
        assert (first.done(), second.done(), third.done()) == (True, True, False)

        gate.release(first.result())
        await settled()

        assert third.done()
        assert gate.used == 2

    running(test)


def test_another_adapter_waits_until_the_running_ones_are_done():
    async def test(gate, clock):
        first, other = asking(gate, A), asking(gate, B)
        await settled()
        assert not other.done()

        gate.release(first.result())
        await settled()

        assert other.done()
        assert gate.switches == 1

    running(test)


def test_within_an_epoch_equals_may_overtake_and_after_it_they_may_not():
    async def test(gate, clock):
        first, other = asking(gate, A), asking(gate, B)
        await settled()
        overtaking = asking(gate, A)
        await settled()
        assert overtaking.done()

        clock.now = 1
        gate.release(first.result())
        late = asking(gate, A)
        await settled()
        assert not late.done()
        assert not other.done()

        gate.release(overtaking.result())
        await settled()
        assert other.done()
        assert not late.done()

    running(test, window_s=0.5)


def test_two_clients_in_a_loop_do_not_starve_a_third():
    """Each of A's comes back at once; B's is served after one epoch."""

    async def test(gate, clock):
        loops = [asking(gate, A), asking(gate, A)]
        await settled()
        waiting = asking(gate, B)
        for _ in range(20):
            clock.now += 0.1
            for number, task in enumerate(loops):
                if task.done():
                    gate.release(task.result())
                    loops[number] = asking(gate, A)
            await settled()
            if waiting.done():
                break

        assert waiting.done()
        assert clock.now <= 0.8

    running(test, window_s=0.5)


def test_the_queue_is_bounded():
    async def test(gate, clock):
        for _ in range(4):
            asking(gate, A)
        await settled()

        with pytest.raises(ApiError) as caught:
            await gate.admit(A)

        assert caught.value.status == 429
        assert caught.value.retry_after

    running(test, max_queue=2)


def test_a_queue_of_none_still_serves():
    async def test(gate, clock):
        await gate.admit(A)
        await gate.admit(A)
        with pytest.raises(ApiError):
            await gate.admit(A)

    running(test, max_queue=0)


def test_one_client_cannot_take_all():
    clients = Clients(3)
    with clients.place("greedy"), clients.place("greedy"), clients.held("greedy"):
        with pytest.raises(ApiError) as caught, clients.place("greedy"):
            pass
        assert caught.value.status == 429
        with clients.place("modest"):
            assert clients.counts["modest"] == 1
    with clients.place("greedy"):
        assert dict(clients.counts) == {"greedy": 1}
    assert not clients.counts


def test_who_leaves_the_queue_is_forgotten_and_holds_nobody_up():
    async def test(gate, clock):
        first, other, behind = asking(gate, A), asking(gate, B), asking(gate, A)
        await settled()
        other.cancel()
        clock.now = 9
        await settled()
        late = asking(gate, A)
        gate.release(first.result())
        await settled()

        assert behind.done()
        assert late.done()
        assert gate.used == 2
        assert not gate.waiting

    running(test)


def test_a_turn_granted_to_who_has_just_left_is_not_lost():
    async def test(gate, clock):
        first, second = asking(gate, A), asking(gate, A)
        await settled()
        gate.release(first.result())  # grants second's turn before second runs
        second.cancel()
        await settled()

        assert gate.used == 0

    running(test, capacity=1)


def test_waiting_has_an_end():
    async def test(gate, clock):
        await gate.admit(A)
        with pytest.raises(ApiError) as caught:
            await gate.admit(B)

        assert caught.value.status == 503
        assert not gate.waiting

    running(test, queue_s=0.01)


def test_those_who_wait_for_a_dead_child_are_told():
    async def test(gate, clock):
        gate.close()
        tasks = [asking(gate, A), asking(gate, B)]
        await settled()
        gate.refuse_all(unavailable("dead"))
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert [error.status for error in results] == [503, 503]
        assert gate.used == 0

    running(test)


def test_a_request_of_many_answers_takes_many_slots_but_never_more_than_there_are():
    async def test(gate, clock):
        one, large = asking(gate, A), asking(gate, A, cost=9)
        await settled()
        assert not large.done()
        gate.release(one.result())
        await settled()
        assert large.result().cost == 3
        gate.release(large.result())
        assert gate.used == 0

    running(test, capacity=3)


def test_a_client_with_many_requests_gets_no_more_slots_than_one_with_few():
    async def test(gate, clock):
        many = [asking(gate, A, client="many") for _ in range(9)]
        await settled()
        few = [asking(gate, A, client="few") for _ in range(2)]
        await settled()
        assert [task.done() for task in many[:3]] == [True, True, False]

        gate.release(many[0].result())
        await settled()
        assert few[0].done()  # before the seven that have waited for longer
        gate.release(many[1].result())
        await settled()
        assert many[2].done()  # each has a slot, and so it stays
        assert not few[1].done()

        gate.release(few[0].result())
        await settled()
        assert few[1].done()

    running(test)


def test_a_client_of_long_answers_waits_for_those_of_short_ones():
    async def test(gate, clock):
        long = [asking(gate, A, client="long") for _ in range(3)]
        short = [asking(gate, A, client="short") for _ in range(3)]
        await settled()
        clock.now = 10.0
        gate.release(long[0].result())
        for task in short[:2]:
            await settled()
            assert task.done()
            clock.now += 1
            gate.release(task.result())
        await settled()
        assert short[2].done()
        assert not long[1].done()

    running(test, capacity=1)


def test_nothing_is_kept_of_clients_that_have_left():
    async def test(gate, clock):
        tasks = [asking(gate, A, client=str(number)) for number in range(5)]
        await settled()
        tasks[4].cancel()
        gate.release(tasks[0].result())
        await settled()
        gate.close()
        for task in tasks[1:3]:
            gate.release(task.result())
        gate.refuse_all(unavailable("dead"))
        await asyncio.gather(*tasks, return_exceptions=True)

        assert gate.shares == {}
        assert gate.used == 0

    running(test)
