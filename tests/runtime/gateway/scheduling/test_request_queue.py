"""Whose turn it is: bounds, epochs, and nobody who is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from runtime.gateway.api_errors import ApiError, unavailable
from runtime.gateway.scheduling import request_queue
from runtime.gateway.scheduling.request_queue import CROWDED_S, Clients
from tests.support.queued_requests import A, B, asking, running, settled


def test_slots_are_given_out_and_taken_back():
    async def test(queue, clock):
        first, second, third = (asking(queue, A) for _ in range(3))
        await settled()
        assert (first.done(), second.done(), third.done()) == (True, True, False)

        queue.release(first.result())
        await settled()

        assert third.done()
        assert queue.used == 2

    running(test)


def test_another_adapter_waits_until_the_running_ones_are_done():
    async def test(queue, clock):
        first, other = asking(queue, A), asking(queue, B)
        await settled()
        assert not other.done()

        queue.release(first.result())
        await settled()

        assert other.done()
        assert queue.switches == 1

    running(test)


def test_within_an_epoch_equals_may_overtake_and_after_it_they_may_not():
    async def test(queue, clock):
        first, other = asking(queue, A), asking(queue, B)
        await settled()
        overtaking = asking(queue, A)
        await settled()
        assert overtaking.done()

        clock.now = 1
        queue.release(first.result())
        late = asking(queue, A)
        await settled()
        assert not late.done()
        assert not other.done()

        queue.release(overtaking.result())
        await settled()
        assert other.done()
        assert not late.done()

    running(test, window_s=0.5)


def test_two_clients_in_a_loop_do_not_starve_a_third():
    """Each of A's comes back at once; B's is served after one epoch."""

    async def test(queue, clock):
        loops = [asking(queue, A), asking(queue, A)]
        await settled()
        waiting = asking(queue, B)
        for _ in range(20):
            clock.now += 0.1
            for number, task in enumerate(loops):
                if task.done():
                    queue.release(task.result())
                    loops[number] = asking(queue, A)
            await settled()
            if waiting.done():
                break

        assert waiting.done()
        assert clock.now <= 0.8

    running(test, window_s=0.5)


def test_the_queue_is_bounded():
    async def test(queue, clock):
        for _ in range(4):
            asking(queue, A)
        await settled()

        with pytest.raises(ApiError) as caught:
            await queue.admit(A)

        assert caught.value.status == 429
        assert caught.value.retry_after

    running(test, max_queue=2)


def test_a_queue_of_none_still_serves():
    async def test(queue, clock):
        await queue.admit(A)
        await queue.admit(A)
        with pytest.raises(ApiError):
            await queue.admit(A)

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
    async def test(queue, clock):
        first, other, behind = asking(queue, A), asking(queue, B), asking(queue, A)
        await settled()
        other.cancel()
        clock.now = 9
        await settled()
        late = asking(queue, A)
        queue.release(first.result())
        await settled()

        assert behind.done()
        assert late.done()
        assert queue.used == 2
        assert not queue.waiting

    running(test)


def test_a_turn_granted_to_who_has_just_left_is_not_lost():
    async def test(queue, clock):
        first, second = asking(queue, A), asking(queue, A)
        await settled()
        queue.release(first.result())  # grants second's turn before second runs
        second.cancel()
        await settled()

        assert queue.used == 0

    running(test, capacity=1)


def test_waiting_has_an_end():
    async def test(queue, clock):
        await queue.admit(A)
        with pytest.raises(ApiError) as caught:
            await queue.admit(B)

        assert caught.value.status == 503
        assert not queue.waiting

    running(test, queue_s=0.01)


def test_those_who_wait_for_a_dead_child_are_told():
    async def test(queue, clock):
        queue.close()
        tasks = [asking(queue, A), asking(queue, B)]
        await settled()
        queue.refuse_all(unavailable("dead"))
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert [error.status for error in results] == [503, 503]
        assert queue.used == 0

    running(test)


def test_a_request_of_many_answers_takes_many_slots_but_never_more_than_there_are():
    async def test(queue, clock):
        one, large = asking(queue, A), asking(queue, A, cost=9)
        await settled()
        assert not large.done()
        queue.release(one.result())
        await settled()
        assert large.result().cost == 3
        queue.release(large.result())
        assert queue.used == 0

    running(test, capacity=3)


def test_a_client_with_many_requests_gets_no_more_slots_than_one_with_few():
    async def test(queue, clock):
        many = [asking(queue, A, client="many") for _ in range(9)]
        await settled()
        few = [asking(queue, A, client="few") for _ in range(2)]
        await settled()
        assert [task.done() for task in many[:3]] == [True, True, False]

        queue.release(many[0].result())
        await settled()
        assert few[0].done()  # before the seven that have waited for longer
        queue.release(many[1].result())
        await settled()
        assert many[2].done()  # each has a slot, and so it stays
        assert not few[1].done()

        queue.release(few[0].result())
        await settled()
        assert few[1].done()

    running(test)


def test_a_client_gets_half_of_the_slots_while_others_come():
    async def test(queue, clock):
        def done(tasks) -> list[bool]:
            return [task.done() for task in tasks]

        clock.now = 10.0
        alone = [asking(queue, A, 2, "x") for _ in range(3)]
        await settled()
        assert done(alone) == [True, True, False]  # nobody else has come
        clock.now += CROWDED_S / 2
        short = asking(queue, A, 1, "y")
        await settled()
        queue.release(alone[0].result())
        await settled()
        assert (short.done(), alone[2].done()) == (True, False)
        queue.release(short.result())
        queue.release(alone[1].result())
        await settled()
        assert alone[2].done()
        more = asking(queue, A, 2, "x")
        await settled()
        assert not more.done()  # `y` has just been there
        another = asking(queue, A, 2, "z")
        await settled()
        assert another.done()
        queue.release(another.result())
        clock.now += CROWDED_S
        queue.release(alone[2].result())
        await settled()
        assert more.done()
        last = asking(queue, A, 2, "x")
        await settled()
        assert last.done()  # for a second nobody has come

    running(test, capacity=4)


def test_slots_that_are_left_to_others_are_taken_when_no_more_come(monkeypatch):
    monkeypatch.setattr(request_queue, "CROWDED_S", 0.05)

    async def test(queue, clock):
        held = asking(queue, A, 2, "x")
        other = asking(queue, A, 1, "y")
        await settled()
        queue.release(other.result())
        more = asking(queue, A, 1, "x")
        await settled()
        assert held.done()
        assert not more.done()
        clock.now += 0.06
        await asyncio.wait_for(more, 5)  # though no request has ended

    running(test, capacity=4)


def test_a_client_of_long_answers_waits_for_those_of_short_ones():
    async def test(queue, clock):
        long = [asking(queue, A, client="long") for _ in range(3)]
        short = [asking(queue, A, client="short") for _ in range(3)]
        await settled()
        clock.now = 10.0
        queue.release(long[0].result())
        for task in short[:2]:
            await settled()
            assert task.done()
            clock.now += 1
            queue.release(task.result())
        await settled()
        assert short[2].done()
        assert not long[1].done()

    running(test, capacity=1)


def test_nothing_is_kept_of_clients_that_have_left():
    async def test(queue, clock):
        tasks = [asking(queue, A, client=str(number)) for number in range(5)]
        await settled()
        tasks[4].cancel()
        queue.release(tasks[0].result())
        await settled()
        queue.close()
        for task in tasks[1:3]:
            queue.release(task.result())
        queue.refuse_all(unavailable("dead"))
        await asyncio.gather(*tasks, return_exceptions=True)

        assert queue.shares == {}
        assert queue.used == 0

    running(test)
