"""What `decant inspect` is given, as people do: it says what it took, or what to name instead."""

from __future__ import annotations

import shutil

import pytest

from exporter.cli.app import run
from tests.support.raw import write_adapter, write_base, write_tiny_gguf


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Inspect a path as it is named in `tmp_path`; the exit code, and what is printed."""
    monkeypatch.setenv("DECANT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def inspected(path: str) -> tuple[int, str, str]:
        code = run(["inspect", path])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return inspected


def test_of_a_training_run_it_says_which_checkpoint(shown, tmp_path):
    for step in (5, 10):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}")
        write_base(tmp_path / "full" / f"checkpoint-{step}")

    for name, kind in (("run", "adapter (LoRA)"), ("full", "base model")):
        code, out, err = shown(name)
        assert code == 0
        assert kind in out
        assert f"`{name}` is a training run: its newest checkpoint is `checkpoint-10`" in err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_model_stands_for_the_model(name, shown, tmp_path):
    write_base(tmp_path / "base")

    code, out, err = shown(f"base/{name}")

    assert code == 0
    assert "base model" in out
    assert f"`{name}` is a file of the model in `base`" in err


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_of_an_adapter_stands_for_the_adapter(name, shown, tmp_path):
    write_adapter(tmp_path / "lora")

    assert "adapter (LoRA)" in shown(f"lora/{name}")[1]


def test_a_zip_is_what_is_in_it(shown, tmp_path):
    write_adapter(tmp_path / "packed" / "lora")
    shutil.make_archive(str(tmp_path / "lora"), "zip", tmp_path / "packed")

    assert "adapter (LoRA)" in shown("lora.zip")[1]


def test_a_gguf_is_known_by_its_content_and_a_folder_with_one_stands_for_it(shown, tmp_path):
    (tmp_path / "folder").mkdir()
    write_tiny_gguf(tmp_path / "folder" / "m.gguf")
    shutil.copy(tmp_path / "folder" / "m.gguf", tmp_path / "sha256-abc")

    assert "gguf" in shown("sha256-abc")[1]
    code, out, err = shown("folder")
    assert code == 0
    assert "folder/m.gguf" in out
    assert "the model in `folder` is a GGUF: `m.gguf`" in err


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("", "PATH is empty", "a variable of the shell"),
        ("notes.txt", "neither a GGUF nor a file of a model", "name a GGUF, or the folder"),
        ("a.tar.gz", "is an archive that decant does not unpack", "tar xf a.tar.gz"),
        ("alone.safetensors", "alone does not say its rank", "adapter_config.json"),
        ("none.bin", "there is no model 'none.bin'", "`decant list`"),
        ("Qwen3-0.6B", "there is no model 'Qwen3-0.6B'", "ORG/Qwen3-0.6B"),
        ("m.gguf", "is not a whole GGUF", "download or copy the file again"),
    ],
)
def test_anything_else_is_refused_with_what_to_name(name, message, hint, shown, tmp_path):
    if name not in ("", "none.bin", "Qwen3-0.6B"):
        (tmp_path / name).write_text("x")

    code, out, err = shown(name)

    assert code != 0
    assert out == ""
    assert message in err
    assert hint in err
