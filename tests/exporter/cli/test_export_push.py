"""`decant export --push`: what an export has written is published at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from exporter.cli.app import run
from tests.support.fake_upload_hub import FakeUploadHub
from tests.support.upload_files import TOKEN, FakeRepo
from tests.support.upload_stage import REPO

pytestmark = [pytest.mark.trained, pytest.mark.llamacpp, pytest.mark.lasting]
TO = ("--push", REPO, "--trust-token", "127.0.0.1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeUploadHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    with FakeUploadHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_the_files_of_an_export_are_pushed_with_their_verification(
    hub: FakeUploadHub, tiny_adapter: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [tiny_adapter, "--base", tiny_base, "-q", "Q8_0", "-q", "F16", *TO, "--private"]

    assert run(["export", *map(str, arguments), "--json"]) == 0

    value = json.loads(capsys.readouterr().out)
    assert value["pushed"]["commit"] == hub.repos[REPO].head
    assert {
        Path(file["path"]).name: Path(file["path"]).read_bytes() for file in value["files"]
    } == {name: data for name, data in hub.contents(REPO).items() if name != "README.md"}
    card = hub.contents(REPO)["README.md"].decode()
    assert ModelCard(card).data.to_dict()["quantized_by"] == "decant"
    assert "| `tiny-lora-Q8_0.gguf` | weights | right |" in card
    assert "not verified" not in card
    assert str(tiny_base.parent) not in card
    assert hub.repos[REPO].private


@pytest.mark.parametrize(
    ("to", "name"),
    [("lora", "tiny-lora.lora.gguf"), ("ollama", "Modelfile")],
)
def test_other_formats_with_a_gguf_are_pushed_too(
    hub: FakeUploadHub, tiny_adapter: Path, tiny_base: Path, to: str, name: str
):
    arguments = [tiny_adapter, "--base", tiny_base, "--to", to, *TO]

    assert run(["export", *map(str, arguments)]) == 0

    assert name in hub.contents(REPO)


@pytest.mark.parametrize("more", [("--no-verify",), ()])
def test_a_public_repo_is_refused_before_the_export(
    hub: FakeUploadHub,
    tiny_adapter: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
):
    hub.repos[REPO] = FakeRepo()
    arguments = [tiny_adapter, "--base", tiny_base, "-o", tmp_path / "out", *TO, "--private", *more]

    assert run(["export", *map(str, arguments)]) == 3

    assert "exists and is public" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_files_and_lists_them(
    hub: FakeUploadHub,
    tiny_adapter: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    hub.faults.commit = [403]
    arguments = [tiny_adapter, "--base", tiny_base, "-o", tmp_path / "out", *TO, "--json"]

    assert run(["export", *map(str, arguments)]) == 6

    value = json.loads(capsys.readouterr().out)
    assert Path(value["files"][0]["path"]).is_file()
    assert "pushed" not in value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "safetensors", *TO), "--push publishes GGUFs"),
        (("--to", "vllm", *TO), "hf upload org/my-lora-GGUF FOLDER"),
        (("--private",), "are options of --push"),
        (("--trust-token", "x"), "are options of --push"),
        (("--push", "noowner"), "names no owner"),
        (("--push", REPO), "--trust-token 127.0.0.1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    hub: FakeUploadHub,
    tiny_adapter: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
):
    assert run(["export", str(tiny_adapter), "--base", str(tiny_base), *arguments]) in (2, 3, 6)

    assert words in capsys.readouterr().err
    assert not hub.requests


def test_a_dry_run_asks_no_hub(
    hub: FakeUploadHub, tiny_adapter: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [tiny_adapter, "--base", tiny_base, *TO, "--dry-run"]

    assert run(["export", *map(str, arguments)]) == 0

    assert f"would push to {REPO}" in capsys.readouterr().err
    assert not hub.requests
