"""Pulls within this process, with impatient limits: what is asked, written and said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

from exporter.core.errors import DownloadError, OutputError, SpaceError
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.lockfile import read_plan
from exporter.hub.publish import Place, check_space
from exporter.hub.pull_plan import FileFilter, PlannedFile
from exporter.hub.repo_refs import Ref
from tests.exporter.hub.conftest import Events
from tests.support.hub_files import COMMIT, REPO, FakeFile
from tests.support.hub_stage import NAME, Stage

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


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
    stage.pull(stage.a, choice=FileFilter(files=("config.json",)))
    before = len(stage.a.requests)
    with pytest.raises(DownloadError, match="1 files are not here, such as `model"):
        stage.pull(stage.a, offline=True)
    assert (
        stage.pull(stage.a, offline=True, choice=FileFilter(files=("config.json",))).missing == ()
    )
    assert len(stage.a.requests) == before


def test_offline_without_anything_is_refused(stage: Stage):
    with pytest.raises(DownloadError, match="is not here, and decant is offline"):
        stage.pull(stage.a, offline=True)
    assert stage.a.requests == []


def test_hashes_that_mirrors_agree_on_are_said_to_be(stage: Stage, events: Events):
    stage.pull(report=events, local_dir=stage.folder / "x")
    assert f"those that {stage.a.name} and {stage.b.name} agree on" in events.text
    lock = json.loads((stage.folder / "x" / "decant.lock.json").read_text())
    assert lock["hashes_from"] == [stage.a.name, stage.b.name]


def test_offline_a_link_to_a_file_means_that_file(stage: Stage):
    stage.pull(stage.a, choice=FileFilter(files=("config.json",)))
    pulled = stage.pull(stage.a, ref=Ref(REPO, file="config.json"), offline=True)
    assert [file.path for file in pulled.plan.files] == ["config.json"]


def test_hashes_from_a_mirror_are_said_to_be(stage: Stage, events: Events):
    stage.pull(stage.a, report=events)
    assert f"the hashes come from {stage.a.name} alone" in events.text


def test_disk_that_is_too_small_is_an_error(tmp_path: Path, stage: Stage):
    place, file = Place(tmp_path, is_cache=True), PlannedFile("x", 1 << 30, "a" * 64)
    with pytest.raises(SpaceError, match=r"1.07 GB must be downloaded"):
        check_space(place, [file], stage.limits, free=lambda folder: 1 << 30)
    check_space(place, [file], stage.limits, free=lambda folder: 2 << 30)


def test_nothing_is_fetched_when_it_does_not_fit(stage: Stage):
    stage.a.files["huge.bin"] = FakeFile(size=10**16, etag="a" * 64)
    with pytest.raises(SpaceError):
        stage.pull(stage.a)
    assert stage.a.gets() == []
    assert not stage.cache.exists()


def test_dry_run_writes_nothing(stage: Stage):
    from exporter.hub.pull import PullRequest, pull

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
        REPO, COMMIT, [stage.a.name],
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
