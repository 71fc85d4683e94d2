"""Full fine-tunes: a whole model in place of an adapter, a run of checkpoints."""

from __future__ import annotations

import shutil

import pytest

from exporter.cli.app import run
from exporter.core.errors import AdapterError
from exporter.inputs.locate import Sources, absent, bring
from tests.support.raw import write_adapter, write_base
from tests.support.reference import read_gguf


def test_a_whole_model_named_as_an_adapter_is_the_base_with_a_note(tmp_path):
    model = write_base(tmp_path / "model")
    said = []

    assert bring(Sources((str(model),), None), report=said.append) == ([], model)
    assert any("whole model, no adapter" in event.message for event in said)
    assert absent(Sources((str(model),), None)) == ()


def test_a_runs_newest_checkpoint_of_a_whole_model_is_found(tmp_path):
    for step in (50, 200, 100):
        write_base(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "checkpoint-300").mkdir()
    newest = tmp_path / "run" / "checkpoint-200"

    assert bring(Sources((str(tmp_path / "run"),), None)) == ([], newest)
    assert bring(Sources((), str(tmp_path / "run"))) == ([], newest)


def test_a_runs_own_model_goes_before_its_checkpoints(tmp_path):
    final = write_base(tmp_path / "run")
    write_base(final / "checkpoint-50")

    assert bring(Sources((str(final),), None)) == ([], final)


def test_an_adapter_in_a_models_folder_stays_an_adapter(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    shutil.copy(write_base(tmp_path / "base") / "config.json", folder)

    assert bring(Sources((str(folder),), None)) == ([folder], None)


def test_a_file_of_the_model_stands_for_its_folder(tmp_path):
    model = write_base(tmp_path / "model")

    for name in ("model.safetensors", "config.json"):
        assert bring(Sources((), str(model / name))) == ([], model)


def test_a_whole_model_beside_an_adapter_is_told_how_to_say_it(tmp_path):
    model, adapter = write_base(tmp_path / "model"), write_adapter(tmp_path / "lora")

    with pytest.raises(AdapterError, match="whole model") as caught:
        bring(Sources((str(model), str(adapter)), None))

    assert f"--base {model} --adapter {adapter}" in caught.value.hint


def test_inspect_finds_what_export_finds(tmp_path, capsys):
    write_adapter(tmp_path / "lora" / "pirate")
    write_base(tmp_path / "run" / "checkpoint-5")
    for name, kind in (("lora", "adapter (LoRA)"), ("run", "base model")):
        assert run(["inspect", str(tmp_path / name)]) == 0
        assert kind in capsys.readouterr().out


@pytest.mark.parametrize("to", ["lora", "vllm"])
@pytest.mark.trained
def test_an_output_of_adapters_alone_refuses_a_whole_model(tmp_path, capsys, to):
    model = write_base(tmp_path / "model")

    assert run(["export", str(model), "--to", to, "-o", str(tmp_path / "out")]) != 0

    assert "needs an adapter" in capsys.readouterr().err


@pytest.mark.trained
def test_a_full_fine_tunes_run_is_exported_as_its_model(tmp_path, tiny_base, capsys):
    shutil.copytree(tiny_base, tmp_path / "run" / "checkpoint-7")
    options = ["-q", "Q8_0", "--no-verify", "-o", str(tmp_path)]

    assert run(["export", str(tmp_path / "run"), *options]) == 0
    assert "checkpoint-7" in capsys.readouterr().err
    assert run(["export", "--base", str(tiny_base), *options]) == 0

    made = [read_gguf(tmp_path / f"{name}-Q8_0.gguf")[1]
            for name in ("run", tiny_base.name)]  # fmt: skip
    assert made[0] == made[1]
