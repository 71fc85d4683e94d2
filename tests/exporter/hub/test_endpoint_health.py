"""What is thought of an endpoint after each thing that it did."""

from __future__ import annotations

from itertools import pairwise

from exporter.hub.endpoint_health import Allowance, Health, is_slow
from exporter.hub.endpoints import Endpoint
from exporter.hub.timeouts import Limits

A, B = Endpoint("https://a"), Endpoint("https://b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def two() -> tuple[Health, Health, Clock]:
    clock = Clock()
    return Health(A, Limits(), clock), Health(B, Limits(), clock), clock


def test_failed_endpoint_is_benched_and_comes_back():
    health, _, clock = two()
    health.failed("breaks off", began=clock.now, got_bytes=True)
    assert health.is_benched
    assert health.is_free
    clock.now += Limits().bench_s
    assert not health.is_benched


def test_endpoint_without_a_byte_is_closed_for_longer_and_longer():
    health, _, clock = two()
    waits = []
    for _ in range(Limits().tries - 1):
        health.failed("cannot be reached", began=clock.now, got_bytes=False)
        waits.append(health.closed_until - clock.now)
        assert not health.is_free
        clock.now = health.closed_until + 1
    assert waits == [0.5, 1, 2, 4, 8, 16, 30]
    assert not health.is_dead
    health.failed("cannot be reached", began=clock.now, got_bytes=False)
    assert health.is_dead


def test_one_connection_finds_out_whether_a_failed_endpoint_is_back():
    health, _, clock = two()
    health.has_answered = True
    health.failed("stalls", began=clock.now, got_bytes=False)
    clock.now = health.closed_until
    assert health.is_open
    health.active = 1
    assert not health.is_open
    health.sent(1, 1)
    assert health.is_open


def test_endpoint_in_doubt_goes_behind_the_others_for_a_while():
    health, _, clock = two()
    health.doubt()
    assert health.is_benched
    assert health.is_free
    clock.now += Limits().bench_s
    assert not health.is_benched


def test_failures_of_one_moment_count_once():
    health, _, clock = two()
    began = clock.now
    clock.now += 1
    for _ in range(8):
        health.failed("stalls", began=began, got_bytes=False)
    assert health.failures == 1


def test_a_byte_wipes_failures_out():
    health, _, clock = two()
    health.failed("stalls", began=clock.now, got_bytes=False)
    health.sent(1, 1)
    assert health.failures == 0


def test_endpoint_that_asks_to_wait_is_left_alone_for_so_long():
    health, _, clock = two()
    health.pause_for(10, "answers 429", began=clock.now)
    assert not health.is_open
    clock.now += 10
    assert health.is_open


def test_endpoint_that_only_asks_to_wait_is_dead_in_the_end():
    health, _, clock = two()
    began = clock.now
    for _ in range(Limits().waits):
        assert not health.is_dead
        health.pause_for(1, "answers 429", began=clock.now)
        clock.now = health.closed_until
    assert health.is_dead
    assert clock.now - began > 300


def allowance(ceiling: int = 8) -> tuple[Allowance, Clock]:
    clock = Clock()
    return Allowance(ceiling, Limits(), clock), clock


def test_connections_double_while_all_are_served():
    allowed, _ = allowance()
    rooms = [allowed.room]
    while allowed.room > allowed.granted:
        allowed.served(allowed.room)
        rooms.append(allowed.room)
    assert rooms == [1, 2, 4, 8, 8]


def test_refusal_of_one_more_leaves_those_that_are_served():
    allowed, clock = allowance()
    allowed.served(1, is_sure=True)
    allowed.served(2, is_sure=True)
    assert allowed.refused(4, began=clock.now)  # the third was not served yet
    assert allowed.refused(3, began=clock.now)
    assert (allowed.room, allowed.found) == (2, 2)


def test_connections_that_may_have_been_served_in_turn_are_not_trusted():
    allowed, clock = allowance()
    allowed.served(1, is_sure=True)
    allowed.served(2)
    assert allowed.room == 4
    assert allowed.refused(2, began=clock.now)
    assert (allowed.room, allowed.found) == (1, 1)


def test_one_more_is_tried_ever_more_rarely():
    allowed, clock = allowance()
    allowed.served(1)
    tried = [clock.now]
    while clock.now < 1000:
        allowed.refused(2, began=clock.now)
        assert allowed.room == 1
        while allowed.room == 1:
            clock.now += 1
        tried.append(clock.now)
    waits = [after - before for before, after in pairwise(tried)]
    assert waits == [20, 80, 320, 960]


def test_one_more_that_is_served_stays():
    allowed, clock = allowance(3)
    allowed.served(1)
    allowed.refused(2, began=clock.now)
    clock.now += 20
    allowed.served(2)
    assert (allowed.room, allowed.found) == (2, 2)
    clock.now += 20
    allowed.served(3)
    assert (allowed.room, allowed.found) == (3, None)


def test_refusals_of_what_is_known_to_be_served_halve_it_once_a_moment():
    allowed, clock = allowance()
    allowed.served(8, is_sure=True)
    began = clock.now
    for most, expected in ((8, 4), (4, 2), (2, 1)):
        clock.now += 1
        for level in range(most, 0, -1):
            assert not allowed.refused(level, began=began)
        assert (allowed.room, allowed.found) == (expected, None)
        began = clock.now = clock.now + 1


def test_connections_are_served_at_once_when_both_bring_bytes_for_a_while():
    health, _, clock = two()
    site = health.site(health.home)
    first, second = site.flow("a", clock.now), site.flow("a", clock.now + 1)
    assert not site.is_news(first, clock.now + 1.01)
    for flow, now in ((first, clock.now + 1.1), (second, clock.now + 1.2)):
        assert site.is_news(flow, now)
        site.look(flow, now)
        assert not site.is_news(flow, now)
    assert (site.in_all.proven, site.per_file.proven) == (2, 2)


def test_slow_connection_yields_to_a_free_endpoint_of_unknown_or_better_speed():
    a, b, _ = two()
    assert is_slow(a, 20_000, [20_000], [a, b])
    assert not is_slow(a, 20_000, [20_000], [a])
    b.rate = 30_000
    assert not is_slow(a, 20_000, [20_000], [a, b])
    b.rate = 100_000
    assert is_slow(a, 20_000, [20_000], [a, b])
    b.benched_until = 1e9
    assert not is_slow(a, 20_000, [20_000], [a, b])


def test_connection_far_below_the_median_is_renewed():
    a, _, _ = two()
    assert is_slow(a, 150_000, [150_000, 2e6, 2e6], [a])
    assert not is_slow(a, 500_000, [500_000, 2e6, 2e6], [a])
