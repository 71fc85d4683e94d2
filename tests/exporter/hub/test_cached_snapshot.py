"""Repos in the hub's cache where no endpoint answers: used when they are whole, and said to be."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from exporter.core.errors import DownloadError
from exporter.hub.access_token import TokenRule
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.pull_plan import FileFilter
from exporter.hub.repo_refs import Ref
from exporter.hub.resolve import Hub, pull_checkpoint, pull_gguf
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.locate import find_base
from tests.conftest import Decant
from tests.exporter.hub.conftest import Events
from tests.support.hub_files import COMMIT, REPO, FakeFile
from tests.support.hub_stage import NAME, Stage

pytestmark = pytest.mark.faults  # a hub, sockets and processes: seconds in all


def by_decant(stage: Stage) -> None:
    stage.pull(stage.b)


def by_huggingface_hub(stage: Stage) -> None:
    snapshot_download(REPO, cache_dir=stage.cache, endpoint=stage.b.url)


def by_transformers(stage: Stage) -> None:
    """File by file: there is no list of them then, as with older hubs."""
    for name in stage.b.files:
        hf_hub_download(REPO, name, cache_dir=stage.cache, endpoint=stage.b.url)


def as_a_copy(stage: Stage) -> None:
    """By a program that follows links, as scp and object stores do."""
    by_transformers(stage)
    kept = stage.cache.with_name("kept")
    stage.cache.rename(kept)
    shutil.copytree(kept, stage.cache)
    shutil.rmtree(stage.cache / "models--org--model" / "blobs")


WAYS = (by_decant, by_huggingface_hub, by_transformers, as_a_copy)


@pytest.fixture
def down(stage: Stage) -> Stage:
    """A does not answer at all; B brings what is to be in the cache."""
    stage.a.__exit__()
    return stage


def hub_of(stage: Stage) -> Hub:
    return Hub((parse_endpoint(stage.a.url),), stage.cache, TokenRule(), offline=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_whole_snapshot_is_used_with_a_note(
    down: Stage, events: Events, way: Callable[[Stage], None], revision: str
):
    way(down)
    pulled = down.pull(down.a, ref=Ref(REPO, revision=revision), report=events)
    assert (pulled.folder / NAME).read_bytes() == down.a.files[NAME].data
    assert (pulled.folder / "config.json").read_bytes() == b"{}"
    assert f"using {REPO}@{revision} from the cache, commit {COMMIT[:12]}" in events.text
    assert "cannot be reached" in events.text


@pytest.mark.parametrize("way", WAYS)
def test_offline_and_unanswered_use_the_same(down: Stage, way: Callable[[Stage], None]):
    way(down)
    plain = down.pull(down.a, offline=True)
    assert plain.folder == down.pull(down.a).folder


@pytest.mark.parametrize(
    "faults",
    [{"api_status": [503] * 4}, {"html_api": True}, {"gated": True}, {"api_status": [404]}],
)
def test_hub_that_says_nothing_of_the_revision_is_done_without(
    stage: Stage, events: Events, faults: dict[str, object]
):
    by_decant(stage)
    stage.fail(**faults)
    assert stage.pull(stage.a, report=events).missing == ()
    assert "from the cache" in events.text


def test_busy_hub_is_asked_again_before_the_cache_is_used(stage: Stage, events: Events):
    by_decant(stage)
    stage.fail(api_status=[503, 503])
    stage.pull(stage.a, report=events)
    assert "from the cache" not in events.text


def test_silent_hub_is_not_asked_again_when_the_cache_will_do(down: Stage):
    by_decant(down)
    down.limits = type(down.limits)()  # those of users, who would wait for 3.5 seconds
    began = time.monotonic()
    down.pull(down.a)
    assert time.monotonic() - began < 2


def test_revision_that_was_never_here_is_not_another_one(down: Stage):
    by_decant(down)
    with pytest.raises(DownloadError, match="no endpoint says what"):
        down.pull(down.a, ref=Ref(REPO, revision="v2"))


def lose(stage: Stage, name: str) -> None:
    """Remove a file's content, and leave the link."""
    (stage.cache / "models--org--model" / "snapshots" / COMMIT / name).resolve().unlink()


def forget(stage: Stage, name: str) -> None:
    """Remove a file as if it had never come."""
    lose(stage, name)
    (stage.cache / "models--org--model" / "snapshots" / COMMIT / name).unlink()


@pytest.mark.parametrize(
    ("way", "damage", "words"),
    [
        (by_decant, lose, f"1 files are not here, such as `{NAME}`"),
        (by_huggingface_hub, forget, f"1 files are not here, such as `{NAME}`"),
        (by_transformers, lose, f"1 files are not here, such as `{NAME}`"),
        (by_transformers, forget, "it has no weights"),
    ],
)
def test_part_of_a_snapshot_is_not_used(
    down: Stage, way: Callable[[Stage], None], damage: Callable[[Stage, str], None], words: str
):
    way(down)
    damage(down, NAME)
    with pytest.raises(DownloadError) as caught:
        down.pull(down.a)
    assert f"the cache has only a part of {REPO}@main: {words}" in caught.value.message
    assert "cannot be reached" in caught.value.message


def test_shard_that_only_the_index_names_is_missed(down: Stage):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    down.b.files = {
        "config.json": FakeFile(b"{}", is_lfs=False), names[0]: FakeFile(b"x"),
        "model.safetensors.index.json": FakeFile(json.dumps(index).encode(), is_lfs=False),
    }  # fmt: skip
    by_transformers(down)
    with pytest.raises(DownloadError, match=f"such as `{names[1]}`"):
        pull_checkpoint(REPO, hub=hub_of(down))


def test_download_that_was_never_finished_is_no_snapshot(down: Stage):
    by_transformers(down)
    (down.cache / "models--org--model" / "blobs" / f"{'a' * 64}.incomplete").touch()
    with pytest.raises(DownloadError, match="a download of it is unfinished"):
        down.pull(down.a)


def test_checkpoint_is_whole_without_files_that_it_does_not_need(down: Stage):
    down.b.files["model.onnx"] = FakeFile(b"x")
    by_huggingface_hub(down)
    lose(down, "model.onnx")
    assert (pull_checkpoint(REPO, hub=hub_of(down)) / NAME).exists()
    with pytest.raises(DownloadError, match=r"such as `model\.onnx`"):
        down.pull(down.a)


@pytest.mark.parametrize("way", [by_decant, by_huggingface_hub, by_transformers])
def test_gguf_of_a_repo_is_found(down: Stage, way: Callable[[Stage], None]):
    down.b.files = {f"M-{quant}.gguf": FakeFile(b"GGUF") for quant in ("Q4_K_M", "Q8_0")}
    way(down)
    assert pull_gguf(f"{REPO}:Q8_0", hub=hub_of(down)).name == "M-Q8_0.gguf"


def test_split_gguf_without_a_part_is_not_used(down: Stage):
    names = [f"M-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    down.b.files = {names[1]: FakeFile(b"GGUF")}
    by_transformers(down)
    with pytest.raises(DownloadError, match=f"such as `{names[0]}`"):
        pull_gguf(REPO, hub=hub_of(down))


def test_nothing_is_written_into_a_cache_that_is_whole(down: Stage):
    by_huggingface_hub(down)
    before = {path: path.lstat().st_mtime_ns for path in down.cache.rglob("*")}
    down.pull(down.a)
    assert {path: path.lstat().st_mtime_ns for path in down.cache.rglob("*")} == before


def test_dry_run_says_what_is_here(down: Stage):
    by_decant(down)
    lose(down, NAME)
    from exporter.hub.pull import PullRequest, pull

    request = PullRequest(
        Ref(REPO),
        (parse_endpoint(down.a.url),),
        down.cache,
        limits=down.limits,
        choice=FileFilter(),
    )
    assert [file.path for file in pull(request, dry_run=True).missing] == [NAME]


def test_base_that_an_adapter_names_is_found(
    down: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    by_transformers(down)
    monkeypatch.setenv("HF_ENDPOINT", down.a.url)
    monkeypatch.setenv("DECANT_CACHE", str(down.folder / "decant"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(down.cache))
    adapter = AdapterSpec(tmp_path, {"base_model_name_or_path": REPO}, ())
    assert (find_base(adapter) / NAME).read_bytes() == down.a.files[NAME].data
    forget(down, NAME)
    with pytest.raises(DownloadError, match="the cache has only a part") as caught:
        find_base(adapter)
    assert "--endpoint" not in (caught.value.hint or "")


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_commands_use_the_cache_and_hint_at_what_they_have(
    stage: Stage, decant: Decant, tmp_path: Path
):
    stage.pull(stage.a)
    env = {
        "HF_ENDPOINT": closed_port(), "HF_HUB_CACHE": str(stage.cache), "HF_HUB_OFFLINE": "0",
        "DECANT_CACHE": str(tmp_path / "decant"),
    }  # fmt: skip
    done = decant("pull", REPO, **env)
    assert (done.returncode, "from the cache" in done.stderr) == (0, True), done.stderr
    done = decant("export", "--base", "org/other", **env)
    assert (done.returncode, "HF_ENDPOINT=" in done.stderr) == (6, True), done.stderr
    assert "--endpoint" not in done.stderr
