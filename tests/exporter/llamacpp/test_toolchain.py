from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporter.cli.app import run
from exporter.core.errors import ModelError
from exporter.llamacpp import vocabulary
from exporter.llamacpp.toolchain import Toolchain, follow_tool, run_tool, scrubbed, without_gpus

VARIABLE = "CUDA_VISIBLE_DEVICES"


def test_llama_cpp_sees_no_setting_of_the_callers_but_of_its_hardware():
    env = {"PATH": "/bin", "LLAMA_ARG_TOOLS": "all", "HF_TOKEN": "x", "GOMP_SPINCOUNT": "5"}

    assert scrubbed(env) == {"PATH": "/bin", "GOMP_SPINCOUNT": "5"}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path / "file" / "cache"))

    assert run(["setup", "--quiet"]) == 4
    error = capsys.readouterr().err
    assert f"cannot write `{tmp_path}/file/cache" in error
    assert "DECANT_CACHE=FOLDER" in error


@pytest.fixture
def tells_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """A llama.cpp whose tools say which GPUs they may use, where the user allows the second."""
    monkeypatch.setenv(VARIABLE, "1")
    tool = tmp_path / "tool"
    tool.write_text(f'#!/bin/sh\necho "[${{{VARIABLE}-all}}]"\n')
    tool.chmod(0o755)
    return Toolchain(SimpleNamespace(tool=lambda _: tool))


def test_tools_that_prepare_an_export_stay_off_the_gpu(tells_gpus):
    assert run_tool(tells_gpus, "llama-quantize", []) == "[]\n"


def test_calibration_may_use_the_gpus_that_the_user_allows(tells_gpus):
    assert follow_tool(tells_gpus, "llama-imatrix", [], lambda _: None) == "[1]\n"


@pytest.mark.parametrize("before", [None, "1"])
def test_gpus_are_hidden_inside_the_block_alone(before, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    with without_gpus():
        assert os.environ[VARIABLE] == ""
    assert os.environ.get(VARIABLE) == before


def test_a_vocabulary_is_read_without_looking_for_gpus(monkeypatch):
    looked = []
    bindings = SimpleNamespace(
        llama_backend_init=lambda: None,
        llama_supports_gpu_offload=lambda: looked.append(os.environ.get(VARIABLE)),
        llama_model_default_params=SimpleNamespace,
        llama_model_load_from_file=lambda *_: None,
    )
    monkeypatch.setattr(vocabulary, "load_bindings", lambda _: bindings)
    with pytest.raises(ModelError), vocabulary.vocabulary(Path("x.gguf"), None):
        pass

    assert looked == [""]
