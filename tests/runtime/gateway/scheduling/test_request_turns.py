"""Where the engine gives adapters turns, requests begin beside those with other adapters."""

from __future__ import annotations

import asyncio

from runtime.gateway.scheduling.request_queue import BESIDE_S
from tests.support.queued_requests import A, B, C, asking, running, settled


def test_where_the_engine_takes_turns_another_adapter_begins_beside_the_running_one():
    async def test(queue, clock):
        first, other = asking(queue, A), asking(queue, B)
        await settled()
        assert first.done()
        assert not other.done()  # its equals may come

        clock.now = BESIDE_S
        await asyncio.wait_for(other, 5)  # though no request has come or ended
        assert queue.used == 2
        assert queue.switches == 1

    running(test, takes_turns=True)


def test_where_the_engine_takes_turns_equals_go_first_within_a_window_and_others_after_it():
    async def test(queue, clock):
        held = [asking(queue, A) for _ in range(3)]
        other = asking(queue, B)
        await settled()
        clock.now = 0.4
        queue.release(held[0].result())
        await settled()
        assert held[2].done()
        assert not other.done()

        late = asking(queue, A)
        await settled()
        clock.now = 0.5
        queue.release(held[1].result())
        await settled()
        assert other.done()
        assert not late.done()

        again = asking(queue, B)  # the window is the other's now
        await settled()
        clock.now = 0.6
        queue.release(held[2].result())
        await settled()
        assert again.done()
        assert not late.done()

        clock.now = 1.1
        third = asking(queue, C)
        await settled()
        queue.release(other.result())
        await settled()
        assert late.done()  # and not the third, whose equals may come
        assert not third.done()

    running(test, takes_turns=True, window_s=0.5)


def test_where_the_engine_takes_turns_a_third_adapter_does_not_starve():
    async def test(queue, clock):
        loops = [asking(queue, A), asking(queue, B)]
        await settled()
        clock.now += 0.1
        await settled()
        waiting = asking(queue, C)
        for _ in range(40):
            clock.now += 0.05
            for number, scales in enumerate((A, B)):
                if loops[number].done():
                    queue.release(loops[number].result())
                    loops[number] = asking(queue, scales)
            await settled()
            if waiting.done():
                break

        assert waiting.done()
        assert clock.now <= 0.8

    running(test, takes_turns=True, window_s=0.5)


def test_a_large_request_holds_up_another_adapter_until_the_window_ends():
    async def test(queue, clock):
        held = [asking(queue, A) for _ in range(2)]
        await settled()
        large, other = asking(queue, A, 4), asking(queue, B)
        await settled()
        clock.now = BESIDE_S
        await asyncio.sleep(2 * BESIDE_S)
        assert not other.done()  # the large one is next, as soon as there is room
        clock.now = 0.3
        await asyncio.wait_for(other, 5)  # though no request has come or ended
        assert not large.done()
        for task in (*held, other):
            queue.release(task.result())
        await settled()
        assert large.done()

    running(test, capacity=4, takes_turns=True, window_s=0.3)


def test_a_request_for_more_slots_than_an_engine_has_after_a_restart_begins():
    async def test(queue, clock):
        held, large = asking(queue, A, 4), asking(queue, A, 4)
        await settled()
        queue.close()
        queue.release(held.result())
        queue.capacity = 2
        queue.open()
        await settled()
        assert large.done()
        assert queue.used == 2
        queue.release(large.result())
        assert queue.used == 0

    running(test, capacity=4, takes_turns=True)
