"""Mirrors that allow few connections, or few requests: each file comes, with few refusals."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from exporter.core.errors import DownloadError
from exporter.hub.timeouts import Limits
from tests.exporter.hub.conftest import Events
from tests.support.hub_files import FakeFile, Faults, random_bytes
from tests.support.hub_stage import Stage

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all

RATE = 4 << 20  # bytes a second of one connection


@pytest.fixture
def mirror(stage: Stage) -> Stage:
    """A as a mirror, and the waits that users have."""
    stage.pull(stage.b)  # what has to be imported is
    shutil.rmtree(stage.cache)
    stage.limits = replace(Limits(), cell=64 << 10, small=32 << 10)
    return stage


def seconds_of(stage: Stage, events: Events, **faults: object) -> float:
    """How long a pull from A alone takes, with these limits of it; what came is right."""
    stage.fail(rate=RATE, **faults)
    began = time.monotonic()
    stage.pull(stage.a, report=events)
    assert stage.is_right()
    return time.monotonic() - began


@pytest.mark.parametrize("refusal", [403, 429, 503, "rst", "fin", "html"])
def test_mirror_that_allows_one_connection_is_as_fast_as_one(
    mirror: Stage, events: Events, refusal: int | str
):
    seconds = seconds_of(mirror, events, most=1, refusal=refusal)
    assert seconds < mirror.size / RATE + 0.4  # a wait would be of half a second
    assert 1 <= len(mirror.a.refused) <= 3
    assert "gated" not in events.text


def test_what_a_mirror_allows_is_said(mirror: Stage, events: Events):
    seconds_of(mirror, events, most=1, refusal=403)
    said = "answers 403 where one more connection is opened: continuing with 1"
    assert f"{mirror.a.name} {said}" in events.text


def test_time_to_wait_is_of_the_connection_that_was_too_many(mirror: Stage, events: Events):
    seconds = seconds_of(mirror, events, most=1, refusal=429, refusal_wait=60)
    assert seconds < mirror.size / RATE + 0.4


@pytest.mark.parametrize("limit", [{"is_per_file": True}, {"is_for_ranges": True}, {}])
def test_as_many_connections_are_used_as_are_allowed(
    mirror: Stage, events: Events, limit: dict[str, bool]
):
    """More than one saves a part of half a second, of which a busy machine may take some."""
    del mirror.a.files["config.json"]
    seconds = seconds_of(mirror, events, most=3, **limit)
    assert mirror.size / RATE / seconds > 1.1
    assert len(mirror.a.refused) <= 4


def test_limit_of_each_file_does_not_hold_back_other_files(mirror: Stage, events: Events):
    mirror.a.files = {
        f"{letter}.safetensors": FakeFile(random_bytes(1 << 19, seed))
        for seed, letter in enumerate("abcdef")
    }
    mirror.fail(rate=1 << 19, most=1, is_per_file=True, refusal=403)
    began = time.monotonic()
    mirror.pull(mirror.a)
    assert time.monotonic() - began < 3  # one after the other would take 6


def test_limit_of_the_host_that_has_the_bytes_is_found(mirror: Stage, events: Events):
    mirror.b.faults = Faults(rate=RATE, most=1, refusal=403)
    seconds = seconds_of(mirror, events, data_origin=mirror.b.url)
    assert seconds < mirror.size / RATE + 0.4
    assert len(mirror.b.refused) <= 4


@pytest.mark.parametrize(("refusal", "wait"), [(429, 1), (403, None)])
def test_mirror_that_counts_requests_is_asked_later(
    mirror: Stage, events: Events, refusal: int, wait: int | None
):
    mirror.fail(per_window=3, window_s=1.5, refusal=refusal, refusal_wait=wait)
    mirror.pull(mirror.a, report=events)
    assert mirror.is_right()
    assert len(mirror.a.refused) <= 16  # eight connections may meet the limit twice
    assert "gated" not in events.text


def test_user_is_told_what_is_waited_for(mirror: Stage, events: Events):
    mirror.fail(per_window=1, window_s=1.0, refusal=429, refusal_wait=1)
    mirror.pull(mirror.a, report=events)
    assert f"{mirror.a.name} answers 429 and asks to wait 1 s" in events.text


@pytest.mark.parametrize("refusal", [403, "html"])
def test_first_request_that_is_denied_is_final(mirror: Stage, refusal: int | str):
    mirror.fail(most=0, refusal=refusal)
    with pytest.raises(DownloadError, match=r"gated or private\?|a login page or a portal\?"):
        mirror.pull(mirror.a)
    assert len(mirror.a.gets()) == 1


def test_other_endpoint_takes_what_a_limited_one_cannot(mirror: Stage):
    mirror.fail(rate=RATE, most=1, refusal=403)
    mirror.b.faults.rate = RATE
    began = time.monotonic()
    served = mirror.pull().served
    assert time.monotonic() - began < 0.75 * mirror.size / RATE
    assert served[mirror.a.name] > mirror.size / 10 < served[mirror.b.name]
