"""The names of results: a training run's is the run's, and what an earlier export left stays."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from exporter.cli.app import run
from exporter.cli.outputs.request_options import ResultNames
from exporter.core.gguf import read_gguf
from exporter.core.resumable_file import journal_path
from exporter.model_store import file_name

NAMES = ResultNames("my-run", "my-run-checkpoint-60")


@pytest.fixture
def chosen(tmp_path):
    """The name by which two quantizations are written to the folder."""

    def paths_by(name):
        return tuple(tmp_path / file_name(name, quant) for quant in ("Q8_0", "F16"))

    return partial(NAMES.chosen, paths_by, quiet=False)


def test_a_result_is_named_after_the_run(chosen, tmp_path, capsys):
    assert chosen() == "my-run"
    assert not capsys.readouterr().err


def test_an_earlier_export_by_the_checkpoints_name_stays_and_is_told(chosen, tmp_path, capsys):
    earlier = tmp_path / "my-run-checkpoint-60-Q8_0.gguf"
    earlier.write_bytes(b"GGUF")

    assert chosen() == "my-run"
    assert f"`{earlier}`, an earlier export of this checkpoint, stays" in capsys.readouterr().err
    assert earlier.read_bytes() == b"GGUF"


def test_a_stopped_export_by_the_checkpoints_name_goes_on(chosen, tmp_path, capsys):
    earlier = tmp_path / "my-run-checkpoint-60-Q8_0.gguf"
    journal_path(earlier).write_bytes(b"{}\n")

    assert chosen() == "my-run-checkpoint-60"
    assert "goes on: `my-run-checkpoint-60-Q8_0.gguf`" in capsys.readouterr().err
    journal_path(tmp_path / "my-run-Q8_0.gguf").write_bytes(b"{}\n")
    assert chosen() == "my-run"  # which was begun later


def test_a_stopped_export_in_parts_goes_on_too(chosen, tmp_path):
    (tmp_path / ".my-run-checkpoint-60-F16-00001-of-00002.gguf.journal").write_bytes(b"{}\n")
    assert chosen() == "my-run-checkpoint-60"


@pytest.mark.trained
@pytest.mark.llamacpp
def test_the_model_of_a_training_run_has_the_runs_name(
    tiny_base, tiny_adapter, toolchain, tmp_path, monkeypatch, capsys
):
    store = tmp_path / "store"
    monkeypatch.setenv("DECANT_STORE", str(store))
    for step in (20, 40):
        shutil.copytree(tiny_adapter, tmp_path / "my-run" / f"checkpoint-{step}")
    options = ["--base", str(tiny_base), "-q", "F16", "--no-verify"]

    assert run(["export", str(tmp_path / "my-run"), *options]) == 0
    assert "its newest checkpoint is `checkpoint-40`" in capsys.readouterr().err
    made = read_gguf(store / "my-run-F16.gguf")
    assert made.text("general.name").lower().replace(" ", "-") == "my-run"
    assert made.text("decant.adapter") == "my-run"
    assert made.text("decant.adapter.checkpoint") == "checkpoint-40"

    assert run(["export", str(tmp_path / "my-run"), *options]) == 8
    newest = tmp_path / "my-run" / "checkpoint-40"
    assert f"decant export {newest}" in capsys.readouterr().err
    assert run(["export", str(newest), *options]) == 0
    names = sorted(path.name for path in store.glob("*.gguf"))
    assert names == ["my-run-F16.gguf", "my-run-checkpoint-40-F16.gguf"]

    assert run(["inspect", "my-run"]) == 0
    assert "my-run (checkpoint-40)" in capsys.readouterr().out
