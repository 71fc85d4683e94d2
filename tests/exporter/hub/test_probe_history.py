"""What a pull remembers of endpoints, and what the next one does with it."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.hub.endpoints import parse_endpoint
from exporter.hub.probe_history import KEPT_S, ProbeHistory
from tests.support.hub_files import Faults
from tests.support.hub_stage import NAME, Stage

A, B = "https://a", "https://b"


def test_failure_is_remembered_for_a_week(tmp_path: Path):
    path = tmp_path / "new" / "endpoints.json"
    ProbeHistory(path, clock=lambda: 1000).learn("answers", failed=[A], worked=[B])
    assert ProbeHistory(path, clock=lambda: 1000 + KEPT_S - 1).lacks(A, "answers")
    assert not ProbeHistory(path, clock=lambda: 1000 + KEPT_S).lacks(A, "answers")
    assert not ProbeHistory(path, clock=lambda: 999).lacks(A, "answers")  # the clock was set back
    assert not ProbeHistory(path, clock=lambda: 1000).lacks(B, "answers")


def test_endpoint_that_works_is_forgotten(tmp_path: Path):
    path = tmp_path / "endpoints.json"
    ProbeHistory(path).learn("bytes", failed=[A], worked=[])
    ProbeHistory(path).learn("answers", failed=[A], worked=[])
    ProbeHistory(path).learn("answers", failed=[], worked=[A])
    assert ProbeHistory(path).lacks(A, "bytes")
    assert not ProbeHistory(path).lacks(A, "answers")
    ProbeHistory(path).learn("bytes", failed=[], worked=[A])
    assert not ProbeHistory(path).lacks(A, "bytes")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff", b'{"format": 2, "failed": {"bytes": {"https://a": 5}}}',
        b'{"format": 1}', b'{"format": 1, "failed": []}', b'{"format": 1, "failed": {"bytes": 7}}',
        b'{"format": 1, "failed": {"bytes": {"https://a": "5"}}}',
        b'{"format": 1, "failed": {"bytes": {"https://a": NaN}}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_damaged_memory_is_no_memory(tmp_path: Path, content: bytes):
    path = tmp_path / "endpoints.json"
    path.write_bytes(content)
    memory = ProbeHistory(path, clock=lambda: 10)
    assert not memory.lacks(A, "bytes")
    memory.learn("bytes", failed=[A], worked=[])
    assert ProbeHistory(path, clock=lambda: 10).lacks(A, "bytes")


def test_memory_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / "file").write_text("")
    memory = ProbeHistory(tmp_path / "file" / "endpoints.json")
    memory.learn("bytes", failed=[A], worked=[])
    assert memory.lacks(A, "bytes")


def test_nothing_new_is_not_written(tmp_path: Path):
    ProbeHistory(tmp_path / "endpoints.json").learn("bytes", failed=[], worked=[A])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.faults
def test_endpoint_that_did_not_answer_is_waited_for_less(stage: Stage, black_hole: str):
    stage.limits = replace(stage.limits, connect_s=1, probe_s=0.05, stall_s=1)
    endpoints = (parse_endpoint(black_hole), parse_endpoint(stage.a.url))
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        stage.pull(endpoints=endpoints, memory=ProbeHistory(stage.folder / "memory.json"))
        seconds.append(time.monotonic() - began)
        shutil.rmtree(stage.cache)
    assert seconds[0] > 1 > seconds[1]


@pytest.mark.faults
def test_endpoint_that_sent_nothing_goes_behind_the_others(stage: Stage):
    stage.fail(stall_after=0)
    path = stage.folder / "memory.json"
    stage.pull(memory=ProbeHistory(path))
    assert ProbeHistory(path).lacks(stage.a.url, "bytes")
    shutil.rmtree(stage.cache)
    asked = len(stage.a.gets())
    stage.pull(memory=ProbeHistory(path))
    assert len(stage.a.gets()) == asked


@pytest.mark.faults
def test_endpoint_that_works_again_is_returned_to(stage: Stage):
    path = stage.folder / "memory.json"
    ProbeHistory(path).learn("bytes", failed=[stage.a.url], worked=[])
    stage.limits = replace(stage.limits, bench_s=0.05)
    stage.b.faults = Faults(rate=1 << 19)
    assert stage.pull(memory=ProbeHistory(path)).served[stage.a.name] > 0
    assert not ProbeHistory(path).lacks(stage.a.url, "bytes")


@pytest.mark.faults
def test_first_byte_of_an_endpoint_in_doubt_lets_the_others_in(stage: Stage):
    path = stage.folder / "memory.json"
    ProbeHistory(path).learn("bytes", failed=[stage.a.url], worked=[])
    stage.fail(rate=400_000)
    seen = []

    def report(event: object) -> None:
        if stage.a.sent > 150_000:  # the first range has 262,144
            seen.append(len(stage.a.gets(NAME)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.pull(stage.a, memory=ProbeHistory(path), report=report)
    assert seen[0] > 1


def test_file_says_nothing_but_addresses_numbers_and_times(tmp_path: Path):
    path = tmp_path / "endpoints.json"
    memory = ProbeHistory(path, clock=lambda: 7)
    memory.learn("bytes", failed=[A], worked=[B])
    memory.learn_most(B, "in all", 2)
    assert json.loads(path.read_text()) == {
        "format": 1, "failed": {"answers": {}, "bytes": {A: 7}},
        "allowed": {"in all": {B: [2, 7]}, "of a file": {}},
    }  # fmt: skip


def test_allowed_connections_are_remembered_for_a_week(tmp_path: Path):
    path = tmp_path / "endpoints.json"
    ProbeHistory(path, clock=lambda: 1000).learn_most(A, "of a file", 1)
    ProbeHistory(path, clock=lambda: 5000).learn_most(A, "of a file", 1)  # no news: it grows old
    assert ProbeHistory(path, clock=lambda: 1000 + KEPT_S - 1).most(A, "of a file") == 1
    assert ProbeHistory(path, clock=lambda: 1000 + KEPT_S).most(A, "of a file") is None
    memory = ProbeHistory(path, clock=lambda: 6000)
    memory.learn_most(A, "of a file", None)
    assert ProbeHistory(path, clock=lambda: 6000).most(A, "of a file") is None


@pytest.mark.parametrize("entry", [[0, 5], ["1", 5], [True, 5], [1], 1, [1, None], [10**9, 5]])
def test_nonsense_about_connections_is_not_believed(tmp_path: Path, entry: object):
    path = tmp_path / "endpoints.json"
    value = {"format": 1, "failed": {}, "allowed": {"in all": {A: entry}}}
    path.write_text(json.dumps(value))
    assert ProbeHistory(path, clock=lambda: 10).most(A, "in all") is None


@pytest.mark.faults
def test_next_pull_asks_for_no_more_connections_than_were_allowed(stage: Stage):
    path = stage.folder / "memory.json"
    del stage.a.files["config.json"]
    stage.fail(rate=4 << 20, most=1, refusal=403)
    stage.pull(stage.a, memory=ProbeHistory(path))
    assert stage.a.refused
    stage.a.refused.clear()
    shutil.rmtree(stage.cache)
    stage.pull(stage.a, memory=ProbeHistory(path))
    assert stage.a.refused == []
