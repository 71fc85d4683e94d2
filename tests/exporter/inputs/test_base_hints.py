"""Bases that an adapter names by a path of the machine it was trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants

from exporter.core.errors import AdapterError, DownloadError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.base_hints import base_of_card, hint_for_absent
from exporter.inputs.locate import find_base
from tests.support.raw import write_adapter, write_base

COMMIT = "a" * 40
THEIRS = [
    "/data/rented/models/Qwen2.5-7B-Instruct",
    r"D:\models\Qwen2.5-7B-Instruct",
    "/workspace/Qwen2.5-7B-Instruct/",
]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub's cache of this test's own, without a network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, repo: str, *, width: int = 8) -> Path:
    """A snapshot of a repo as huggingface_hub leaves it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = write_base(root / "snapshots" / COMMIT, width=width)
    (root / "blobs").mkdir()
    for file in list(folder.iterdir()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(root / "blobs" / digest)
        file.symlink_to(Path("../../blobs") / digest)
    return folder


def adapter(folder: Path, base: str | None, card: str = "") -> Path:
    write_adapter(folder, base_model_name_or_path=base)
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ("---\nbase_model: Qwen/Qwen2.5-7B\nlibrary_name: peft\n---\n# A model", "Qwen/Qwen2.5-7B"),
        ("---\nbase_model:\n- Qwen/Qwen2.5-7B\n---\n", "Qwen/Qwen2.5-7B"),
        ("---\nbase_model: 'Qwen/Qwen2.5-7B'\r\n---\r\n", "Qwen/Qwen2.5-7B"),
        ('---\nbase_model: ["Qwen/Qwen2.5-7B"]  # the base\n---\n', "Qwen/Qwen2.5-7B"),
        ("---\nbase_model: Qwen/Qwen2.5-7B # the base\n---\n", "Qwen/Qwen2.5-7B"),
        ("---\nbase_model:\n- one/a\n- two/b\n---\n", None),
        ("---\nbase_model: /data/Qwen2.5-7B\n---\n", None),
        ("---\nbase_model: D:\\models\\Qwen\n---\n", None),
        ("---\nbase_model: [unclosed\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("base_model: Qwen/Qwen2.5-7B\n", None),
        ("# no front matter", None),
    ],
)
def test_the_model_card_names_the_base_or_does_not(tmp_path, card, named):
    (tmp_path / "README.md").write_bytes(card.encode())

    assert base_of_card(tmp_path) == named


@pytest.mark.parametrize("named", [*THEIRS, None])
def test_the_base_that_the_card_names_is_taken_with_a_word(cache, tmp_path, named):
    snapshot = put(cache, "org/right")
    folder = adapter(tmp_path / "lora", named, "---\nbase_model: org/right\n---\n")
    said = []

    found = find_base(open_adapter(folder), report=said.append)

    assert found == snapshot
    assert "its model card names org/right, which is used" in said[0].message


def test_a_base_that_only_the_card_names_is_asked_of_the_hub(cache, tmp_path):
    folder = adapter(tmp_path / "lora", THEIRS[0], "---\nbase_model: org/away\n---\n")

    with pytest.raises(DownloadError, match="org/away"):
        find_base(open_adapter(folder))


@pytest.mark.parametrize("named", THEIRS)
def test_a_cached_model_of_the_same_name_is_offered_and_not_taken(cache, tmp_path, named):
    put(cache, "Qwen/Qwen2.5-7B-Instruct", width=16)

    with pytest.raises(AdapterError, match="is not here") as caught:
        find_base(open_adapter(adapter(tmp_path / "lora", named)))

    assert "--base Qwen/Qwen2.5-7B-Instruct" in caught.value.hint


def test_a_cached_model_whose_shapes_fit_is_offered_and_no_other(cache, tmp_path):
    put(cache, "org/fits")
    put(cache, "org/wide", width=16)

    with pytest.raises(AdapterError) as caught:
        find_base(open_adapter(adapter(tmp_path / "lora", "/data/run3/merged")))

    assert "--base org/fits" in caught.value.hint
    assert "org/wide" not in caught.value.hint


@pytest.mark.parametrize(
    ("named", "offered"),
    [
        (
            f"/mnt/rented/.cache/huggingface/hub/models--Qwen--Qwen3-4B/snapshots/{COMMIT}",
            "Qwen/Qwen3-4B",
        ),
        ("/models/meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (r"D:\hub\meta-llama\Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("./Qwen3-4B", "ORG/Qwen3-4B"),
        ("C:\\", "ORG/NAME"),
    ],
)
def test_the_path_itself_says_what_to_try(cache, tmp_path, named, offered):
    opened = open_adapter(adapter(tmp_path / "lora", named))

    assert f"--base {offered}" in hint_for_absent(opened, cache)


def test_a_folder_of_that_name_beside_the_adapter_is_offered(cache, tmp_path):
    write_base(tmp_path / "Qwen2.5-7B-Instruct", width=16)
    opened = open_adapter(adapter(tmp_path / "lora", THEIRS[0]))

    assert f"--base {tmp_path / 'Qwen2.5-7B-Instruct'}" in hint_for_absent(opened, cache)


@pytest.mark.parametrize(
    ("named", "hint"),
    [
        ("/root/.cache/modelscope/hub/Qwen/Qwen2___5-7B-Instruct", "`--base Qwen/Qwen2.5-7B-Inst"),
        (r"C:\Users\me\models\Qwen2.5-7B", "--base ORG/Qwen2.5-7B"),
        ("/workspace/Qwen2___5-7B", "--base ORG/Qwen2.5-7B"),
    ],
)
def test_a_folder_that_is_no_org_is_not_offered_as_one(cache, tmp_path, named, hint):
    folder = adapter(tmp_path / "lora", named)

    assert hint in hint_for_absent(open_adapter(folder), cache)


def test_offline_a_repo_that_is_not_here_is_no_nameless_base(cache, tmp_path):
    folder = adapter(tmp_path / "lora", "unsloth/qwen2.5-7b-bnb-4bit")

    with pytest.raises(AdapterError, match="and decant is offline") as caught:
        find_base(open_adapter(folder))

    assert "leave out --offline" in str(caught.value.hint)
