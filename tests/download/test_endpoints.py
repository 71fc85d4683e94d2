from __future__ import annotations

import pytest

from exporter.core.errors import InputError
from exporter.download.endpoints import (
    Endpoint,
    Health,
    endpoints_from,
    is_slow,
    parse_endpoint,
    settle_endpoints,
)
from exporter.download.limits import Limits

A, B = Endpoint("https://a"), Endpoint("https://b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def two() -> tuple[Health, Health, Clock]:
    clock = Clock()
    return Health(A, Limits(), clock), Health(B, Limits(), clock), clock


def test_endpoints_given_go_before_the_environment():
    assert endpoints_from(("https://a", "b"), {"HF_ENDPOINT": "https://c"}) == (A, B)


def test_hf_endpoint_may_be_a_list():
    env = {"HF_ENDPOINT": "https://a, https://b,modelscope:"}
    settle_endpoints(env)
    assert env["HF_ENDPOINT"] == "https://a"  # all that huggingface_hub understands
    assert [endpoint.url for endpoint in endpoints_from((), env)] == [
        "https://a", "https://b", "https://modelscope.cn",
    ]  # fmt: skip


def test_without_a_word_it_is_the_hub():
    (endpoint,) = endpoints_from((), {})
    assert endpoint.is_reference
    assert not parse_endpoint("https://hf-mirror.com").is_reference
    assert not parse_endpoint("http://huggingface.co").is_reference


def test_modelscope_may_know_the_repo_by_another_name():
    assert parse_endpoint("modelscope:Org/Name") == Endpoint(
        "https://modelscope.cn", "modelscope", "Org/Name"
    )


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x",
        "https://",
        "--quiet",
        "https://u:p@host",
        "",
        "https://h:99999",
        "https://[::1",
        "modelscope:ftp://x",
    ],
)
def test_endpoint_that_is_no_address_is_refused(text: str):
    with pytest.raises(InputError, match="is not an address"):
        parse_endpoint(text)


def test_modelscope_named_as_a_hub_is_explained():
    with pytest.raises(InputError) as caught:
        parse_endpoint("https://www.modelscope.cn")
    assert caught.value.hint == "as a source of bytes: --endpoint modelscope:"


def test_modelscope_alone_is_refused():
    with pytest.raises(InputError, match="ModelScope alone"):
        endpoints_from(("modelscope:",), {})


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
    health.failed("stalls", began=clock.now, got_bytes=False)
    clock.now = health.closed_until
    assert health.is_free
    health.active = 1
    assert not health.is_free
    health.sent(1, 1)
    assert health.is_free


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


def test_endpoint_that_asks_to_wait_gets_fewer_connections():
    health, _, clock = two()
    health.active = 6
    health.asked_to_wait(10, "answers 429")
    assert health.most == 3
    assert not health.is_free
    clock.now += 10
    health.active = 0
    assert health.is_free


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
