from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Decant
from tests.support.hub_files import COMMIT, REPO, FakeFile, Faults
from tests.support.hub_stage import NAME, Stage

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


@pytest.fixture
def cache(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(stage.cache))
    monkeypatch.setenv("HF_ENDPOINT", stage.a.url)
    monkeypatch.setenv("DECANT_CACHE", str(stage.folder / "decant"))
    return stage.cache


def test_pull_prints_the_folder_and_says_what_it_does(stage: Stage, cache: Path, decant: Decant):
    done = decant("pull", REPO)
    assert done.returncode == 0
    folder = Path(done.stdout.strip())
    assert (folder / NAME).read_bytes() == stage.a.files[NAME].data
    host = stage.a.url.removeprefix("http://")
    assert f"asking {host} for {REPO}@main" in done.stderr
    assert f"{NAME}: 100% of 2.1 MB" in done.stderr
    assert "total: 100% of 2.1 MB" in done.stderr


def test_json_has_the_files_and_who_served_them(stage: Stage, cache: Path, decant: Decant):
    value = json.loads(decant("pull", f"{REPO}@main", "--json", "--quiet").stdout)
    assert (value["commit"], value["received"]) == (COMMIT, stage.size + 2)
    assert value["served_by"] == {stage.a.url.removeprefix("http://"): stage.size + 2}
    assert [file["was_here"] for file in value["files"]] == [False, False]
    assert not value["hashes_from_reference"]


def test_dry_run_lists_what_is_here(stage: Stage, cache: Path, decant: Decant):
    decant("pull", REPO, "config.json")
    done = decant("pull", REPO, "--dry-run")
    assert done.stdout.splitlines() == [
        "FILE\tSIZE\tHERE", f"{NAME}\t2.1 MB\tno", "config.json\t2 bytes\tyes",
    ]  # fmt: skip
    assert "to download: 1 files, 2.1 MB" in done.stderr


def test_link_from_the_address_bar_pulls_its_file(stage: Stage, cache: Path, decant: Decant):
    done = decant("pull", f"https://huggingface.co/{REPO}/blob/main/config.json")
    assert Path(done.stdout.strip()).read_bytes() == b"{}"
    assert len(stage.a.gets()) == 1


def test_hf_endpoint_may_list_several(stage: Stage, cache: Path, decant: Decant):
    stage.fail(to_hub=True)
    done = decant("pull", REPO, HF_ENDPOINT=f"{stage.a.url},{stage.b.url}")
    assert (done.returncode, stage.is_right()) == (0, True)


def test_offline_flag_asks_nobody(stage: Stage, cache: Path, decant: Decant):
    decant("pull", REPO)
    before = len(stage.a.requests)
    assert decant("pull", REPO, "--offline").returncode == 0
    assert decant("pull", REPO, HF_HUB_OFFLINE="1").returncode == 0
    assert len(stage.a.requests) == before


def test_lock_file_brings_the_same_bytes(stage: Stage, cache: Path, decant: Decant, tmp_path: Path):
    decant("pull", REPO, "--local-dir", tmp_path / "one")
    stage.a.commit = "beef" * 10
    lock = tmp_path / "one" / "decant.lock.json"
    done = decant("pull", "--locked", lock, "--local-dir", tmp_path / "two")
    assert done.returncode == 0
    assert (tmp_path / "two" / NAME).read_bytes() == stage.a.files[NAME].data
    assert lock.read_text() == (tmp_path / "two" / "decant.lock.json").read_text()


def test_lock_with_wrong_sha256_stops(stage: Stage, cache: Path, decant: Decant, tmp_path: Path):
    decant("pull", REPO, "--local-dir", tmp_path / "one")
    lock = tmp_path / "one" / "decant.lock.json"
    value = json.loads(lock.read_text())
    value["files"][1]["sha256"] = "0" * 64
    lock.write_text(json.dumps(value))
    done = decant("pull", "--locked", lock, "--local-dir", tmp_path / "two")
    assert (done.returncode, "does not have the sha256" in done.stderr) == (7, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name a repo"),
        (("datasets/org/x",), 3, "is a dataset, not a model"),
        ((REPO, "nope.bin"), 3, "has no file 'nope.bin'"),
        (("org/other",), 6, "no endpoint says what org/other holds"),
        ((REPO, "--connections", "0"), 2, "connections"),
        (("--locked", "pyproject.toml"), 3, "is not JSON"),
    ],
)
def test_mistake_is_named(
    cache: Path, decant: Decant, arguments: tuple[str, ...], code: int, words: str
):
    done = decant("pull", *arguments)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_secret_is_not_in_what_is_printed(stage: Stage, cache: Path, decant: Decant):
    stage.a.files["x.bin"] = FakeFile(b"x")
    stage.fail(html_files=True)
    done = decant("pull", REPO, HF_TOKEN="hf_secret", DECANT_DEBUG="1")
    assert done.returncode == 6
    assert "hf_secret" not in done.stdout + done.stderr
    assert not any(request.authorization for request in stage.a.requests)


@pytest.mark.parametrize(
    ("where", "faults", "words"),
    [
        ("http://[::1", {}, "redirects to something that is not a web address"),
        ("https://host:99999999", {}, "redirects to something that is not a web address"),
        ("http://a\x7fb", {}, "redirects to something that is not a web address"),
        ("", {"signed_uses": 0}, "does not let us have it (403)"),
        ("", {"flip": True}, "sends bytes with the wrong hash"),
    ],
)
def test_signed_address_is_in_no_error(
    stage: Stage, cache: Path, decant: Decant, where: str, faults: dict[str, object], words: str
):
    stage.b.faults = Faults(**faults)
    stage.fail(data_origin=where or stage.b.url)
    done = decant("pull", REPO, DECANT_DEBUG="1")
    assert (done.returncode, words in done.stderr) == (6, True), done.stderr
    assert "Traceback" in done.stderr
    assert "ticket" not in done.stderr + done.stdout
    files = [path for path in stage.folder.rglob("*") if path.is_file()]
    assert not any(b"ticket" in path.read_bytes() for path in files)
