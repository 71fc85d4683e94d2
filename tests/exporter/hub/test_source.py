"""Pulls within this process, with impatient limits: who serves, and who is not believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.errors import DownloadError
from exporter.core.events import Event, Progress, Report
from exporter.hub.access_token import TokenRule
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.publish import Place
from exporter.hub.pull_plan import FileFilter
from tests.exporter.hub.conftest import Events
from tests.support.hub_files import FakeFile, Faults
from tests.support.hub_stage import NAME, Stage

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


def stop_when_sent(stage: Stage, nbytes: int) -> Report:
    """A report that presses Ctrl-C when A has sent so much."""

    def report(event: Event) -> None:
        if stage.a.sent > nbytes:
            raise KeyboardInterrupt

    return report


def test_part_begun_at_a_goes_on_at_b(stage: Stage):
    stage.fail(rate=1 << 20)
    with pytest.raises(KeyboardInterrupt):
        stage.pull(stage.a, report=stop_when_sent(stage, stage.size // 2))
    stage.pull(stage.b)
    assert stage.is_right()
    assert stage.b.sent <= 0.6 * stage.size


def test_corrupt_copy_is_refused_and_named(stage: Stage, events: Events):
    stage.fail(flip=True)
    pulled = stage.pull(report=events)
    assert stage.is_right()
    assert pulled.served[stage.b.name] >= stage.size
    assert f"{stage.a.name} sends bytes with the wrong hash: `{NAME}`" in events.text


def test_corrupt_small_file_is_refused(stage: Stage):
    stage.fail(flip=True)
    for hub in (stage.a, stage.b):
        hub.files = {"config.json": FakeFile(b'{"a": 1}', is_lfs=False)}
    folder = stage.pull().folder
    assert (folder / "config.json").read_bytes() == b'{"a": 1}'


def test_corrupt_everywhere_publishes_nothing(stage: Stage):
    stage.fail(flip=True)
    stage.b.faults.flip = True
    with pytest.raises(DownloadError, match="wrong hash") as caught:
        stage.pull()
    assert caught.value.exit_code == 6
    assert stage.is_empty()


def test_part_that_was_corrupt_before_is_fetched_once_more(stage: Stage):
    part = Place(stage.cache / "models--org--model", is_cache=True).own / f"{stage.etag}.part"
    stage.fail(rate=1 << 20)
    with pytest.raises(KeyboardInterrupt):
        stage.pull(stage.a, report=stop_when_sent(stage, 600_000))
    wait_until_unlocked(part)
    with part.open("r+b") as file:
        file.write(b"damaged")
    stage.a.faults = Faults()
    stage.pull(stage.a)
    assert stage.is_right()


def wait_until_unlocked(part: Path) -> None:
    import fcntl

    with part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def test_interrupt_says_what_is_kept(stage: Stage, events: Events):
    stage.a.faults = Faults(rate=1 << 20)

    def stop(event: object) -> None:
        events(event)
        if isinstance(event, Progress) and event.done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.pull(stage.a, report=stop)
    assert "of 2.1 MB are kept; the same command resumes from there" in events.text


def test_stalled_endpoint_is_left(stage: Stage, events: Events):
    stage.fail(stall_after=100_000)
    pulled = stage.pull(report=events)
    assert stage.is_right()
    assert pulled.served[stage.b.name] > stage.size / 2
    assert f"{stage.a.name} stalls: others go first for a while" in events.text


def test_trickling_endpoint_is_left(stage: Stage, events: Events):
    stage.fail(rate=50_000)
    stage.pull(report=events)
    assert f"{stage.a.name} is slow" in events.text


def test_endpoint_returns_when_its_bench_is_over(stage: Stage):
    stage.limits = replace(stage.limits, bench_s=0.05)
    stage.fail(cut_after=100_000)
    stage.b.faults.rate = 1 << 19
    served = stage.pull().served
    assert served[stage.a.name] > 200_000 < served[stage.b.name]


def test_endpoint_that_asks_to_wait_is_waited_for(stage: Stage, events: Events):
    stage.fail(busy=1)
    stage.pull(stage.a)
    assert stage.is_right()


def test_expired_address_is_resolved_again(stage: Stage):
    stage.fail(data_origin=stage.b.url)
    stage.b.faults.signed_uses = 1
    stage.pull(stage.a)
    assert stage.is_right()
    assert stage.ratio <= 1.001


def test_server_without_ranges_is_read_in_one_go(stage: Stage):
    stage.fail(no_ranges=True)
    stage.pull(stage.a)
    assert stage.is_right()


def test_server_without_ranges_completes_a_part_of_another(stage: Stage):
    stage.limits = replace(stage.limits, connections=1)
    stage.fail(cut_after=500_000)
    stage.b.faults.no_ranges = True
    stage.pull()
    assert stage.is_right()


def test_mirror_that_sends_us_to_the_hub_is_passed_over(stage: Stage, events: Events):
    stage.fail(to_hub=True)
    stage.pull(report=events)
    assert stage.is_right()
    assert "does not have it and sends us to the hub" in events.text


def test_main_serves_when_its_hash_is_the_planned_one(stage: Stage):
    stage.fail(no_commit=True)
    stage.pull(stage.a)
    assert stage.is_right()


def test_main_that_moved_on_is_refused(stage: Stage):
    stage.fail(no_commit=True, other_version=True)
    with pytest.raises(DownloadError, match="has another version of it"):
        stage.pull(stage.a)
    assert stage.is_empty()


def test_answer_without_a_hash_is_refused(stage: Stage, events: Events):
    stage.fail(nameless=True)
    stage.pull(report=events)
    assert stage.is_right()
    assert f"{stage.a.name} does not say which version of the file it has" in events.text


def test_login_page_is_named_before_anything_is_kept(stage: Stage):
    stage.fail(html_files=True)
    with pytest.raises(DownloadError, match="sends an HTML page in its place"):
        stage.pull(stage.a)
    assert stage.is_empty()


def test_gguf_that_is_none_is_stopped_early(stage: Stage):
    stage.a.files = {"x.gguf": FakeFile(b"<xml>" * 100_000)}
    with pytest.raises(DownloadError, match="sends something that is not a GGUF"):
        stage.pull(stage.a)


def test_modelscope_serves_where_its_sha256_is_the_plans(stage: Stage):
    stage.fail(to_hub=True)
    with pytest.raises(DownloadError):
        stage.pull(stage.a)
    scope = parse_endpoint(f"modelscope:{stage.b.url}#Other/Name")
    pulled = stage.pull(
        endpoints=(parse_endpoint(stage.a.url), scope), choice=FileFilter(files=(NAME,))
    )
    assert (pulled.folder / NAME).read_bytes() == stage.a.files[NAME].data
    assert any("/api/v1/models/Other/Name/repo?" in seen.path for seen in stage.b.requests)
    assert pulled.received == stage.size


def test_modelscope_with_other_bytes_is_not_asked_for_them(stage: Stage):
    stage.fail(to_hub=True)
    stage.b.files = {NAME: FakeFile(b"other")}
    scope = parse_endpoint(f"modelscope:{stage.b.url}")
    with pytest.raises(DownloadError, match="does not have it with the planned sha256"):
        stage.pull(endpoints=(parse_endpoint(stage.a.url), scope), choice=FileFilter(files=(NAME,)))
    assert stage.b.sent == 0


@pytest.mark.parametrize("trusted", [False, True])
def test_token_never_follows_a_redirect(stage: Stage, trusted: bool):
    stage.fail(data_origin=stage.b.url)
    rule = TokenRule("hf_secret", ("127.0.0.1",) if trusted else ())
    stage.pull(stage.a, rule=rule)
    assert {request.authorization for request in stage.b.requests} == {None}
    expected = {"Bearer hf_secret"} if trusted else {None}
    assert {request.authorization for request in stage.a.requests} == expected


def test_token_is_in_no_file_and_no_message(stage: Stage, events: Events):
    stage.fail(cut_after=300_000)
    stage.pull(stage.a, rule=TokenRule("hf_secret", ("127.0.0.1",)), report=events)
    files = [path for path in stage.folder.rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in path.read_bytes() for path in files)
    assert "hf_secret" not in events.text


def test_files_of_all_sizes_come_at_once(stage: Stage):
    sizes = (0, 1, 40_000, 70_000)
    stage.a.files = {f"{i}/{n}.bin": FakeFile(bytes(n)) for i, n in enumerate(sizes * 5)}
    folder = stage.pull(stage.a).folder
    for name, file in stage.a.files.items():
        assert (folder / name).read_bytes() == file.data
