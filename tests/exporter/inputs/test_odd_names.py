"""Names and paths as people really give them: links, zips, colons, folders of a cache."""

from __future__ import annotations

import zipfile

import pytest
from click.testing import CliRunner

from exporter.cli.export_command import export, parse_weighted
from exporter.cli.inspect_command import describe
from exporter.cli.outputs.request_options import output_paths
from exporter.core.errors import AdapterError, CheckpointError, InputError
from exporter.core.events import silent
from exporter.inputs.adapter import open_adapter
from exporter.inputs.locate import Sources, bring
from exporter.inputs.open_checkpoint import open_checkpoint
from tests.support.raw import write_adapter, write_base, write_tiny_gguf


def test_a_link_to_nothing_is_called_that(tmp_path):
    folder, base = write_adapter(tmp_path / "lora"), write_base(tmp_path / "base")
    for path in (folder / "adapter_model.safetensors", base / "model.safetensors"):
        path.unlink()
        path.symlink_to("../../blobs/4d7a")

    with pytest.raises(AdapterError, match=r"is a link to `\.\./\.\./blobs/4d7a`, which is gone"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match=r"is a link to `\.\./\.\./blobs/4d7a`"):
        open_checkpoint(base)
    for path in (folder / "adapter_config.json", base / "config.json"):
        path.unlink()
        path.symlink_to("gone.json")
    with pytest.raises(AdapterError, match=r"is a link to `gone\.json`"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match=r"is a link to `gone\.json`"):
        open_checkpoint(base)


@pytest.mark.parametrize("main", ["a" * 40, None])
def test_a_repos_folder_in_the_hubs_cache_stands_for_its_snapshot(tmp_path, main):
    snapshots = {}
    for kind, write in (("lora", write_adapter), ("base", write_base)):
        root = tmp_path / f"models--org--{kind}"
        snapshots[kind] = write(root / "snapshots" / ("a" * 40))
        if main:
            (root / "snapshots" / ("b" * 40)).mkdir()
            (root / "refs").mkdir()
            (root / "refs" / "main").write_text(main)

    named = [str(tmp_path / f"models--org--{kind}") for kind in ("lora", "base")]

    assert bring(Sources((named[0],), named[1])) == ([snapshots["lora"]], snapshots["base"])


@pytest.mark.parametrize("name", ["run:2", "x:0.5", "plain"])
def test_a_colon_in_a_name_that_is_here_is_no_scale(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)

    assert parse_weighted(name) == (name, 1.0)
    assert parse_weighted(f"{name}:0.25") == (name, 0.25)


def test_a_folder_with_one_gguf_is_that_model(tmp_path):
    write_tiny_gguf(tmp_path / "unsloth.Q4_K_M.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./unsloth.Q4_K_M.gguf")
    (tmp_path / "broken.gguf").write_text("x")
    adapter = write_adapter(tmp_path / "lora")
    path = tmp_path / "unsloth.Q4_K_M.gguf"

    assert bring(Sources((str(adapter),), str(tmp_path))) == ([adapter], path)

    write_tiny_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF models: other\.gguf, unsloth") as caught:
        bring(Sources((str(adapter),), str(tmp_path)))
    assert str(tmp_path / "other.gguf") in str(caught.value.hint)


def test_inspect_shows_the_gguf_of_a_folder(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")

    assert describe(str(tmp_path), silent)["path"] == str(path)


def test_a_zip_of_a_long_path_is_its_innermost_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path / "cache"))
    folder = write_adapter(tmp_path / "lora")
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"kaggle/working/checkpoint-500/{file.name}")

    assert open_adapter(tmp_path / "kaggle.zip").folder.name == "checkpoint-500"


@pytest.mark.parametrize("arguments", [("", "--base", "B"), ("A", "--base", "")])
def test_an_empty_name_is_no_name(arguments):
    done = CliRunner().invoke(export, arguments)

    assert done.exit_code == 2
    assert "is empty" in done.output


def test_a_name_of_another_kind_of_file_is_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"model\.bin` has the name of a file that is no GGUF"):
        output_paths(tmp_path / "model.bin", "name", ("Q4_K_M",))
    assert output_paths(tmp_path / "M.GGUF", "name", ("Q4_K_M",)) == (tmp_path / "M.GGUF",)
    assert output_paths(tmp_path / "v1.5", "name", ("F16",))[0].parent == tmp_path / "v1.5"


def test_a_name_that_file_systems_do_not_take_is_refused_or_cut(tmp_path):
    with pytest.raises(InputError, match="is a longer name than 220 bytes"):
        output_paths(tmp_path / f"{'z' * 251}.gguf", "name", ("Q4_K_M",))

    (path,) = output_paths(tmp_path, "模" * 200, ("Q4_K_M",))

    path.with_name(f".{path.stem}-00001-of-00002.gguf.partial").write_text("")
    assert path.name.endswith("模-Q4_K_M.gguf")


def test_a_file_that_is_no_gguf_is_no_folder_either(tmp_path):
    (tmp_path / "notes").write_text("x")

    with pytest.raises(InputError, match="is a file, and no GGUF"):
        output_paths(tmp_path / "notes", "name", ("Q4_K_M",))
