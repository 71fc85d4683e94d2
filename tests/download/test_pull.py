"""Pulls within this process, with impatient limits: who serves, what is written, what is said."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

from exporter.core.errors import DownloadError, OutputError, SpaceError
from exporter.core.events import Event, Progress, Report
from exporter.download.endpoints import parse_endpoint
from exporter.download.lock import read_plan
from exporter.download.place import Place, check_space
from exporter.download.plan import Choice, PlannedFile
from exporter.download.refs import Ref
from exporter.download.token import TokenRule
from tests.download.conftest import Events
from tests.download.rows import NAME, Stage
from tests.fakes.hub import COMMIT, REPO, FakeFile, FakeHub, Faults

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


def name_of(hub: FakeHub) -> str:
    return parse_endpoint(hub.url).name


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_snapshot_is_what_huggingface_hub_expects(stage: Stage):
    pulled = stage.pull(stage.a)
    assert stage.is_right()
    local = snapshot_download(REPO, cache_dir=stage.cache, local_files_only=True)
    assert Path(local) == pulled.folder
    assert try_to_load_from_cache(REPO, "config.json", cache_dir=stage.cache) == str(
        pulled.folder / "config.json"
    )
    (repo,) = scan_cache_dir(stage.cache).repos
    assert (repo.repo_id, repo.nb_files) == (REPO, 2)
    assert not scan_cache_dir(stage.cache).warnings
    before = len(stage.a.gets())
    snapshot_download(REPO, cache_dir=stage.cache, endpoint=stage.a.url)
    assert [request.method for request in stage.a.gets()[before:]].count("GET") == 0


def test_second_pull_asks_for_the_plan_only(stage: Stage):
    stage.pull(stage.a)
    before = len(stage.a.requests)
    pulled = stage.pull(stage.a)
    assert (pulled.missing, pulled.received) == ((), 0)
    assert all("/api/" in request.path for request in stage.a.requests[before:])


def test_what_huggingface_hub_downloaded_is_not_fetched_again(stage: Stage):
    snapshot_download(REPO, cache_dir=stage.cache, endpoint=stage.a.url)
    assert stage.pull(stage.b).missing == ()
    assert stage.b.sent == 0


def test_offline_without_our_plan_trusts_huggingface_hub(stage: Stage):
    snapshot_download(REPO, cache_dir=stage.cache, endpoint=stage.a.url)
    before = len(stage.a.requests)
    pulled = stage.pull(stage.a, offline=True)
    assert {file.path for file in pulled.plan.files} == {NAME, "config.json"}
    assert len(stage.a.requests) == before


def test_offline_with_a_hole_is_refused_without_a_request(stage: Stage):
    stage.pull(stage.a, choice=Choice(files=("config.json",)))
    before = len(stage.a.requests)
    with pytest.raises(DownloadError, match="1 files are not here, such as `model"):
        stage.pull(stage.a, offline=True)
    assert stage.pull(stage.a, offline=True, choice=Choice(files=("config.json",))).missing == ()
    assert len(stage.a.requests) == before


def test_offline_without_anything_is_refused(stage: Stage):
    with pytest.raises(DownloadError, match="is not here, and --offline forbids"):
        stage.pull(stage.a, offline=True)
    assert stage.a.requests == []


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
    assert pulled.served[name_of(stage.b)] >= stage.size
    assert f"{name_of(stage.a)} sends bytes with the wrong hash: `{NAME}`" in events.text


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
    assert "of 2.1 MB are kept; the same command goes on from there" in events.text


def test_stalled_endpoint_is_left(stage: Stage, events: Events):
    stage.fail(stall_after=100_000)
    pulled = stage.pull(report=events)
    assert stage.is_right()
    assert pulled.served[name_of(stage.b)] > stage.size / 2
    assert f"{name_of(stage.a)} stalls: others go first for a while" in events.text


def test_trickling_endpoint_is_left(stage: Stage, events: Events):
    stage.fail(rate=50_000)
    stage.pull(report=events)
    assert f"{name_of(stage.a)} is slow" in events.text


def test_endpoint_returns_when_its_bench_is_over(stage: Stage):
    stage.limits = replace(stage.limits, bench_s=0.05)
    stage.fail(cut_after=100_000)
    stage.b.faults.rate = 1 << 19
    served = stage.pull().served
    assert served[name_of(stage.a)] > 200_000 < served[name_of(stage.b)]


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
    assert f"{name_of(stage.a)} does not say which version of the file it has" in events.text


def test_login_page_is_named_before_anything_is_kept(stage: Stage):
    stage.fail(html_files=True)
    with pytest.raises(DownloadError, match="sends an HTML page in its place"):
        stage.pull(stage.a)
    assert stage.is_empty()


def test_gguf_that_is_none_is_stopped_early(stage: Stage):
    stage.a.files = {"x.gguf": FakeFile(b"<xml>" * 100_000)}
    with pytest.raises(DownloadError, match="sends something that is no GGUF"):
        stage.pull(stage.a)


def test_modelscope_serves_where_its_sha256_is_the_plans(stage: Stage):
    stage.fail(to_hub=True)
    with pytest.raises(DownloadError):
        stage.pull(stage.a)
    scope = parse_endpoint(f"modelscope:{stage.b.url}#Other/Name")
    pulled = stage.pull(
        endpoints=(parse_endpoint(stage.a.url), scope), choice=Choice(files=(NAME,))
    )
    assert (pulled.folder / NAME).read_bytes() == stage.a.files[NAME].data
    assert any("/api/v1/models/Other/Name/repo?" in seen.path for seen in stage.b.requests)
    assert pulled.received == stage.size


def test_modelscope_with_other_bytes_is_not_asked_for_them(stage: Stage):
    stage.fail(to_hub=True)
    stage.b.files = {NAME: FakeFile(b"other")}
    scope = parse_endpoint(f"modelscope:{stage.b.url}")
    with pytest.raises(DownloadError, match="does not have it with the planned sha256"):
        stage.pull(endpoints=(parse_endpoint(stage.a.url), scope), choice=Choice(files=(NAME,)))
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


def test_hashes_from_a_mirror_are_said_to_be(stage: Stage, events: Events):
    stage.pull(stage.a, report=events)
    assert f"the hashes come from {name_of(stage.a)} alone" in events.text


def test_disk_that_is_too_small_is_an_error(tmp_path: Path, stage: Stage):
    place, file = Place(tmp_path, is_cache=True), PlannedFile("x", 1 << 30, "a" * 64)
    with pytest.raises(SpaceError, match=r"1.07 GB are to be downloaded"):
        check_space(place, [file], stage.limits, free=lambda folder: 1 << 30)
    check_space(place, [file], stage.limits, free=lambda folder: 2 << 30)


def test_nothing_is_fetched_when_it_does_not_fit(stage: Stage):
    stage.a.files["huge.bin"] = FakeFile(size=10**16, etag="a" * 64)
    with pytest.raises(SpaceError):
        stage.pull(stage.a)
    assert stage.a.gets() == []
    assert not stage.cache.exists()


def test_dry_run_writes_nothing(stage: Stage):
    from exporter.download.pull import PullRequest, pull

    request = PullRequest(Ref(REPO), (parse_endpoint(stage.a.url),), stage.cache)
    pulled = pull(request, dry_run=True)
    assert {file.path for file in pulled.missing} == {NAME, "config.json"}
    assert stage.a.gets() == []
    assert not stage.cache.exists()


def test_local_dir_gets_plain_files_and_a_lock(stage: Stage, tmp_path: Path):
    folder = tmp_path / "here"
    stage.pull(stage.a, local_dir=folder)
    assert written(folder) == {NAME, "config.json", "decant.lock.json"}
    assert not (folder / NAME).is_symlink()
    lock = json.loads((folder / "decant.lock.json").read_text())
    assert (lock["repo"], lock["commit"], lock["hashes_from"]) == (
        REPO, COMMIT, [name_of(stage.a)],
    )  # fmt: skip
    assert [(item["path"], item["size"], item["sha256"]) for item in lock["files"]] == [
        (name, file.size, hashlib.sha256(file.data).hexdigest())
        for name, file in stage.a.files.items()
    ]


def test_damaged_local_file_is_replaced(stage: Stage, tmp_path: Path):
    folder = tmp_path / "here"
    stage.pull(stage.a, local_dir=folder)
    content = bytearray((folder / NAME).read_bytes())
    content[7] ^= 1
    (folder / NAME).write_bytes(content)
    assert [file.path for file in stage.pull(stage.a, local_dir=folder).missing] == [NAME]
    assert (folder / NAME).read_bytes() == stage.a.files[NAME].data


def test_lock_reproduces_the_folder_without_asking_for_a_plan(stage: Stage, tmp_path: Path):
    stage.pull(stage.a, local_dir=tmp_path / "one")
    locked = read_plan(tmp_path / "one" / "decant.lock.json")
    stage.pull(stage.b, ref=locked.ref, locked=locked, local_dir=tmp_path / "two")
    for name, file in stage.a.files.items():
        assert (tmp_path / "two" / name).read_bytes() == file.data
    assert not any("/api/" in request.path for request in stage.b.requests)


def test_lock_that_cannot_be_kept_stops(stage: Stage, tmp_path: Path):
    stage.pull(stage.a, local_dir=tmp_path / "one")
    locked = read_plan(tmp_path / "one" / "decant.lock.json")
    stage.b.files = stage.b.files | {NAME: FakeFile(b"newer")}
    with pytest.raises(DownloadError, match="has another version of it"):
        stage.pull(stage.b, ref=locked.ref, locked=locked, local_dir=tmp_path / "two")
    assert not (tmp_path / "two" / NAME).exists()


@pytest.mark.parametrize("name", ["config.json", "sub/x.json"])
def test_link_in_the_way_is_refused(stage: Stage, tmp_path: Path, name: str):
    stage.a.files = {name: FakeFile(b"{}", is_lfs=False)}
    outside, folder = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    folder.mkdir()
    (folder / name.partition("/")[0]).symlink_to(outside)
    with pytest.raises(OutputError, match="is a link to another place"):
        stage.pull(stage.a, local_dir=folder)
    assert list(outside.iterdir()) == []
    assert stage.a.gets() == []


def test_link_out_of_the_cache_is_refused(stage: Stage, tmp_path: Path):
    snapshot = stage.cache / "models--org--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / NAME).symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match="is a link out of the cache"):
        stage.pull(stage.a)
    assert not (tmp_path / "outside").exists()


def test_evil_name_writes_nothing(stage: Stage):
    stage.a.files = {"../../evil": FakeFile(b"x"), "config.json": FakeFile(b"{}")}
    with pytest.raises(DownloadError):
        stage.pull(stage.a)
    assert written(stage.folder) == set()


def test_files_of_all_sizes_come_at_once(stage: Stage):
    sizes = (0, 1, 40_000, 70_000)
    stage.a.files = {f"{i}/{n}.bin": FakeFile(bytes(n)) for i, n in enumerate(sizes * 5)}
    folder = stage.pull(stage.a).folder
    for name, file in stage.a.files.items():
        assert (folder / name).read_bytes() == file.data
