from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mini_sdist import HTML, Events, FakeIndex, Mini
from vendor.fetch import ATTEMPTS, fetch_sdist
from vendor.index import JSON_PAGE
from vendor.report import BuildError, silent


def fetch(mini: Mini, *, report=silent, slept=None) -> Path:
    cache = Path(mini.env["DECANT_CACHE"])
    sleep = (slept if slept is not None else []).append
    return fetch_sdist(mini.recipe, cache, env=mini.env, report=report, sleep=sleep)


def part_of(mini: Mini) -> Path:
    return Path(mini.env["DECANT_CACHE"]) / "sdists" / f"{mini.sdist.name}.part"


@pytest.mark.parametrize("kind", [JSON_PAGE, HTML, "text/html"])
def test_sdist_is_found_on_every_kind_of_index_page(mini: Mini, index: FakeIndex, kind: str):
    index.kind = kind
    assert fetch(mini).read_bytes() == mini.sdist.read_bytes()


def test_broken_download_goes_on_where_it_stopped(mini: Mini, index: FakeIndex):
    index.break_after = [100, 50]
    assert fetch(mini).read_bytes() == mini.sdist.read_bytes()
    ranges = [headers.get("Range") for path, headers in index.requests if "files" in path]
    assert ranges == [None, "bytes=100-", "bytes=150-"]


def test_part_of_an_earlier_run_is_resumed(mini: Mini, index: FakeIndex):
    part_of(mini).parent.mkdir(parents=True)
    part_of(mini).write_bytes(index.data[:77])
    events = Events()
    assert fetch(mini, report=events).read_bytes() == index.data
    assert events.seen[0].done == 77
    assert not part_of(mini).exists()


def test_server_without_ranges_is_read_from_the_start(mini: Mini, index: FakeIndex):
    index.ranges, index.break_after = False, [100]
    assert fetch(mini).read_bytes() == index.data


def test_complete_part_is_not_fetched_again(mini: Mini, index: FakeIndex):
    part_of(mini).parent.mkdir(parents=True)
    part_of(mini).write_bytes(index.data)
    fetch(mini)
    assert index.requests == []


def test_second_fetch_asks_the_network_nothing(mini: Mini, index: FakeIndex):
    fetch(mini)
    index.requests.clear()
    fetch(mini)
    assert index.requests == []


@pytest.mark.parametrize("change", [bytes.upper, lambda data: data[:-1], lambda data: data + b"x"])
def test_wrong_hash_stops_and_deletes_nothing(mini: Mini, index: FakeIndex, change):
    index.data = change(index.data)
    with pytest.raises(BuildError) as caught:
        fetch(mini)
    assert part_of(mini).read_bytes() == index.data
    assert str(part_of(mini)) in caught.value.message
    assert f"expected sha256 {mini.recipe.sha256}" in caught.value.message
    assert "delete it" in caught.value.hint


def test_damaged_file_in_the_cache_is_told_and_kept(mini: Mini, index: FakeIndex):
    path = fetch(mini)
    path.write_bytes(b"damaged")
    with pytest.raises(BuildError, match=r"is not the expected"):
        fetch(mini)
    assert path.read_bytes() == b"damaged"


def test_busy_server_is_asked_again_after_longer_and_longer_waits(mini: Mini, index: FakeIndex):
    index.statuses, slept = [503, 500, 429], []
    fetch(mini, slept=slept)
    assert slept == [1, 2, 4]


def test_server_that_stays_busy_is_given_up(mini: Mini, index: FakeIndex):
    index.statuses, slept = [503] * 99, []
    with pytest.raises(BuildError, match="503") as caught:
        fetch(mini, slept=slept)
    assert len(slept) == ATTEMPTS - 1
    assert "DECANT_LLAMA_SDIST" in caught.value.hint


def test_forbidden_file_is_not_asked_for_twice(mini: Mini, index: FakeIndex):
    index.statuses, slept = [403], []
    with pytest.raises(BuildError, match="403"):
        fetch(mini, slept=slept)
    assert slept == []


def test_unreachable_index_is_named_with_a_way_out(mini: Mini, index: FakeIndex):
    mini.env["PIP_INDEX_URL"] = "http://127.0.0.1:1/simple"
    with pytest.raises(BuildError, match=r"http://127\.0\.0\.1:1/simple") as caught:
        fetch(mini)
    assert "PIP_INDEX_URL" in caught.value.hint
    assert "DECANT_LLAMA_SDIST" in caught.value.hint


def test_index_without_the_file_is_named(mini: Mini, index: FakeIndex):
    index.file_name = "mini_llama-2.0.tar.gz"
    with pytest.raises(BuildError, match=r"mini-llama/` does not list mini_llama-1\.0\.tar\.gz"):
        fetch(mini)


def test_index_password_is_sent_and_never_shown(mini: Mini, index: FakeIndex):
    mini.env["PIP_INDEX_URL"] = index.url.replace("127.0.0.1", "me:s%23cret@127.0.0.1")
    index.statuses = [401]
    with pytest.raises(BuildError) as caught:
        fetch(mini)
    wanted = f"Basic {base64.b64encode(b'me:s#cret').decode()}"
    assert [headers["Authorization"] for _, headers in index.requests] == [wanted] * 2
    assert "cret" not in caught.value.message


def test_file_named_by_the_user_needs_no_index(mini: Mini):
    assert fetch(mini) == mini.sdist


def test_named_file_is_checked_too(mini: Mini):
    wrong = Mini(replace(mini.recipe, sha256="0" * 64), mini.sdist, mini.env)
    with pytest.raises(BuildError, match="is not the expected"):
        fetch(wrong)


def test_named_file_that_is_missing_is_told(mini: Mini):
    mini.env["DECANT_LLAMA_SDIST"] = "/nowhere/at/all.tar.gz"
    with pytest.raises(BuildError, match=r"DECANT_LLAMA_SDIST names `/nowhere/at/all\.tar\.gz`"):
        fetch(mini)
