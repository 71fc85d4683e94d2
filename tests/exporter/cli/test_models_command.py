from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.core.errors import ModelError
from exporter.core.events import Note
from exporter.model_store import StoredModel, file_name, find_model, list_models
from tests.support.raw import write_adapter, write_tiny_gguf


@pytest.fixture
def store() -> Path:
    """A store with one model in two quantizations, another, and things that are not models."""
    folder = Path(os.environ["DECANT_STORE"])
    for name in ("cat-Q4_K_M.gguf", "cat-Q8_0.gguf", "dog-F16.gguf", ".dog-F16.gguf.partial"):
        write_tiny_gguf(folder / name)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_the_list_shows_models_and_nothing_else(store, capsys):
    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split("\t")[0] for line in lines[1:]] == ["cat-Q4_K_M", "cat-Q8_0", "dog-F16"]
    assert "llama" in lines[1]


def test_the_list_as_json(store, capsys):
    assert run(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert rows[0]["name"] == "cat-Q4_K_M"
    assert rows[0]["nbytes"] == (store / "cat-Q4_K_M.gguf").stat().st_size
    assert rows[0]["architecture"] == "llama"


def test_a_damaged_model_is_listed_as_such(store, capsys):
    (store / "bad-Q4_0.gguf").write_bytes(b"GGUF")

    assert run(["list"]) == 0
    assert "bad-Q4_0\t4 bytes\t?\tdamaged" in capsys.readouterr().out


def test_an_empty_store_says_how_to_fill_it(capsys):
    assert run(["list"]) == 0
    printed = capsys.readouterr()

    assert printed.out == ""
    assert "decant export" in printed.err


@pytest.mark.parametrize("name", ["cat-Q8_0", "cat:q8_0", "cat-Q8_0.gguf"])
def test_rm_deletes_just_the_one_that_is_named(store, name, capsys):
    assert run(["rm", name]) == 0

    assert capsys.readouterr().out == "removed cat-Q8_0\n"
    assert [m.full_name for m in list_models(store)] == ["cat-Q4_K_M", "dog-F16"]


def test_rm_of_an_ambiguous_name_deletes_nothing(store, capsys):
    assert run(["rm", "dog", "cat"]) == 3

    assert "--all" in capsys.readouterr().err
    assert len(list_models(store)) == 3


def test_rm_all_deletes_every_quantization_of_a_name(store, capsys):
    assert run(["rm", "--all", "cat", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["removed"] == ["cat-Q4_K_M", "cat-Q8_0"]
    assert [m.full_name for m in list_models(store)] == ["dog-F16"]


@pytest.mark.parametrize("name", ["cta", "notes", "notes.txt", "../store", "..", ""])
def test_rm_of_anything_else_deletes_nothing(store, name, capsys):
    assert run(["rm", name]) == 3

    assert "there is no model" in capsys.readouterr().err
    assert len(list(store.iterdir())) == 5


def test_a_stored_model_is_found_beside_a_folder_of_its_name(store, tmp_path, monkeypatch):
    (tmp_path / "dog").mkdir()
    (tmp_path / "cow").mkdir()
    monkeypatch.chdir(tmp_path)

    assert find_model("dog", store) == store / "dog-F16.gguf"
    with pytest.raises(ModelError) as caught:
        find_model("cow", store)
    assert "decant export cow" in caught.value.hint


def test_a_typo_is_answered_with_the_nearest_name(store):
    with pytest.raises(ModelError) as caught:
        find_model("cta", store)

    assert "cat" in caught.value.hint


def test_a_model_is_a_path_or_a_name(store, tmp_path):
    elsewhere = write_tiny_gguf(tmp_path / "else.gguf")

    assert find_model(str(elsewhere), store) == elsewhere
    assert find_model("dog", store) == store / "dog-F16.gguf"
    assert find_model("cat:q4_k", store) == store / "cat-Q4_K_M.gguf"
    with pytest.raises(ModelError, match="2 quantizations"):
        find_model("cat", store)
    with pytest.raises(ModelError, match="is a folder, not a GGUF"):
        find_model(str(tmp_path), store)
    with pytest.raises(ModelError, match="there is no GGUF"):
        find_model(str(tmp_path / "none.gguf"), store)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my lora", "my-lora-Q4_0.gguf"),
        ("../x", "x-Q4_0.gguf"),
        ("", "model-Q4_0.gguf"),
        ("小", "小-Q4_0.gguf"),
    ],
)
def test_names_become_harmless_file_names(name, expected):
    assert file_name(name, "Q4_0") == expected


def test_the_name_without_its_quantization():
    assert StoredModel(Path("a-b-Q4_K_M.gguf")).name == "a-b"
    assert StoredModel(Path("a-b.gguf")).name == "a-b"


def test_inspect_shows_a_gguf_for_people_and_for_machines(store, capsys):
    assert run(["inspect", "dog", "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert run(["inspect", str(store / "dog-F16.gguf"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert "general.architecture" in shown
    assert "token_embd.weight" in shown
    assert found["kind"] == "gguf"
    assert found["tensors"][0].keys() == {"name", "shape", "type", "nbytes"}


def test_inspect_shows_a_base_and_an_adapter(tmp_path, capsys):
    from tests.support.raw import write_adapter, write_base

    assert run(["inspect", str(write_base(tmp_path / "base"))]) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out
    assert run(["inspect", str(write_adapter(tmp_path / "lora"))]) == 0
    assert "q_proj" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert run(["inspect", str(tmp_path / "empty")]) == 3
    assert "neither a model nor an adapter" in capsys.readouterr().err


def test_metadata_that_a_terminal_would_obey_is_shown_harmless(tmp_path, capsys):
    from exporter.cli.inspect_command import shorten

    assert shorten("\x1b[31mred\x07\n") == "\\x1b[31mred\\x07\\u23ce"


def test_what_a_stopped_export_left_is_said_and_deleted_by_name(store, capsys):
    (store / ".cow-Q4_0.gguf.partial").write_bytes(bytes(9000))
    (store / ".cow-Q4_0.gguf.journal").write_bytes(b"{}\n")

    assert run(["list"]) == 0
    printed = capsys.readouterr()
    assert "cow" not in printed.out
    assert "unfinished: cow-Q4_0, 9 kB" in printed.err
    with pytest.raises(ModelError):
        find_model("cow", store)
    with (store / ".cow-Q4_0.gguf.partial").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(["rm", "cow"]) != 0
        assert "another process is writing" in capsys.readouterr().err
    assert run(["rm", "cow"]) == 0
    assert not list(store.glob("*cow*")) + list(store.glob(".cow*"))


@pytest.mark.parametrize("command", [("chat", "-p", "hi"), ("tokens", "hi"), ("serve",)])
@pytest.mark.parametrize(
    ("name", "told"),
    [("adapter_model.safetensors", "decant export"), ("notes.txt", "decant inspect")],
)
def test_a_file_of_another_kind_is_told_with_what_to_do(
    command, name, told, capsys, tmp_path, monkeypatch
):
    (tmp_path / name).write_bytes(b"whatever")
    monkeypatch.chdir(tmp_path)
    verb, *rest = command

    assert run([verb, name, *rest]) == 3
    error = capsys.readouterr().err
    assert "is a file, but not a GGUF" in error
    assert told in error


@pytest.mark.parametrize("name", ["lora.zip", "./lora.zip"])
def test_a_zip_is_unpacked_by_chat_and_serve_alone(name, capsys, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"whatever")
    monkeypatch.chdir(tmp_path)

    assert run(["tokens", name, "hi"]) == 3
    assert "decant export" in capsys.readouterr().err
    for command in (["chat", name, "-p", "hi"], ["serve", name]):
        assert run(command) == 3
        assert "cannot be unpacked: File is not a zip file" in capsys.readouterr().err


def test_a_name_of_the_hub_is_told_to_need_its_owner(capsys):
    assert run(["chat", "Qwen3-0.6B", "-p", "hi"]) == 3
    assert "ORG/Qwen3-0.6B" in capsys.readouterr().err
    assert run(["chat", "pirate", "-p", "hi"]) == 3
    assert "ORG/" not in capsys.readouterr().err


def test_a_stored_model_goes_before_a_folder_of_its_name_and_it_is_told(
    store, tmp_path, monkeypatch, capsys
):
    """For `inspect` as for `chat`, `tokens` and `verify`, which find models as this does."""
    (tmp_path / "here" / "dog").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    told: list[object] = []

    assert find_model("dog", store, report=told.append) == store / "dog-F16.gguf"
    assert told == [Note("'dog' is the stored model here; the folder beside it is `./dog`")]
    assert run(["inspect", "dog", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["path"] == str(store / "dog-F16.gguf")
    assert "the folder beside it is `./dog`" in shown.err

    (tmp_path / "here" / "dog").rmdir()
    write_adapter(tmp_path / "here" / "dog")
    assert run(["inspect", "./dog"]) == 0
    shown = capsys.readouterr()
    assert "rank" in shown.out
    assert shown.err == ""
    (tmp_path / "here" / "cat").mkdir()
    assert run(["inspect", "cat"]) != 0
    assert "the folder of that name is ./cat" in capsys.readouterr().err
