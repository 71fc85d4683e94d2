"""Near names: what is offered for a mistyped one."""

from __future__ import annotations

import time

import pytest

from exporter.core.near_names import did_you_mean, near_files, near_names


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("my-lroa", ["my-lora"]), ("MY_LORA", ["my-lora"]), ("pirate", ["pirate-lora-Q4_K_M"]),
        ("q4-k-m", ["Q4_K_M"]), ("zzz", []), ("", []), ("a", []),
    ],
)  # fmt: skip
def test_near_names(typed, offered):
    assert near_names(typed, ["my-lora", "pirate-lora-Q4_K_M", "Q4_K_M"]) == offered


def test_the_hint_offers_them_or_says_something_else():
    known = ["temperature", "top_p", "top_k"]
    assert did_you_mean("temprature", known, "/set") == "did you mean temperature?"
    assert did_you_mean("top", known, "/set", most=2) == "did you mean top_p or top_k?"
    assert did_you_mean("x", known, "/set lists them") == "/set lists them"
    assert did_you_mean("top_k_", known, "", form="/{}") == "did you mean /top_k?"


def test_names_of_any_length_take_little_time():
    began = time.thread_time()
    near_names("x" * 100_000, ("y" * 10_000 + str(n) for n in range(100_000)))
    assert time.thread_time() - began < 1


def test_files_near_a_mistyped_path(tmp_path, monkeypatch):
    for name in ("model.gguf", "{notes}.txt", ".hidden.gguf"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)

    assert near_files(tmp_path / "modle.gguf", "no") == f"did you mean `{tmp_path}/model.gguf`?"
    assert near_files(tmp_path / "modle.gguf", "no", (".txt",)) == "no"
    assert near_files(tmp_path / "{note}.txt", "no") == f"did you mean `{tmp_path}/{{notes}}.txt`?"
    assert near_files(tmp_path / "gone" / "model.gguf", "no") == "no"
    from pathlib import Path

    assert near_files(Path("modle.gguf"), "no") == "did you mean `model.gguf`?"
