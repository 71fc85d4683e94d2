"""`decant import`, `decant list --all` and `decant link`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli.app import run
from tests.support.other_home import OtherHome, make_home
from tests.support.other_stores import (
    MODEL,
    TEMPLATE,
    add_to_hub,
    add_to_lmstudio,
    contents,
    gguf,
)
from tests.support.upload_stage import write_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherHome:
    return make_home(tmp_path / "home", monkeypatch)


def test_the_path_is_the_result_and_the_next_command_a_note(home, capsys):
    home.ollama.add("llama3.2", "1b")

    assert run(["import", "--from", "ollama", "llama3.2:1b"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{home.store}/llama3.2-1b-Q8_0.gguf\n"
    assert "then: decant chat llama3.2-1b-Q8_0" in err


def test_a_prefix_as_for_a_base_is_allowed(home):
    home.ollama.add("cat")

    assert run(["import", "--from", "ollama", "ollama:cat", "--as", "mine"]) == 0
    assert (home.store / "mine-Q8_0.gguf").is_file()


def test_the_result_as_json(home, capsys):
    add_to_hub(home.cache, "org/cat", {"cat-Q8_0.gguf": gguf(home.path)})

    assert run(["import", "--from", "hf", "org/cat", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["name"] == "cat-Q8_0"
    assert (value["from"], value["source"]) == ("hf", "org/cat/cat-Q8_0.gguf")
    assert value["link"] == "hard"


@pytest.mark.parametrize("program", ["ollama", "lmstudio", "hf"])
@pytest.mark.parametrize("name", ["nothing", "../../../etc/passwd", "a\x1b[31mb"])
def test_an_unknown_name_is_an_error_with_a_hint(home, capsys, program, name):
    assert run(["import", "--from", program, name]) == 3
    error = capsys.readouterr().err

    assert "\n\nhint: " in error
    assert "\x1b" not in error
    assert not list(home.store.iterdir())


def test_the_program_must_be_named(home, capsys):
    assert run(["import", "cat"]) == 2
    assert "--from" in capsys.readouterr().err


def test_the_list_shows_all_stores_and_changes_none(home, capsys):
    home.ollama.add("cat")
    add_to_lmstudio(home.lmstudio, "org/Dog/Dog's-Q8_0.gguf")
    add_to_hub(home.cache, "org/base", {"config.json": b"{}", "model.safetensors": b"x"})
    before = contents(home.path)

    assert run(["list", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("\t") for line in lines]
    assert rows[0] == ["STORE", "NAME", "SIZE", "TO HAVE IT HERE"]
    assert [row[3] for row in rows[1:]] == [
        "decant import --from ollama cat:latest",
        "decant import --from lmstudio 'org/Dog/Dog'\"'\"'s-Q8_0.gguf'",
        "it is a checkpoint, no GGUF; decant export - --base org/base",
    ]
    assert contents(home.path) == before


def test_a_listed_command_does_what_it_says(home, capsys):
    home.ollama.add("cat")
    assert run(["list", "--all", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)

    assert run(row["to_import"].split()[1:]) == 0
    assert run(["list", "--all"]) == 0
    assert "here as cat-Q8_0" in capsys.readouterr().out


def test_the_list_as_json_names_each_store(home, capsys):
    home.ollama.add("cat")
    write_gguf(home.store / "own-Q8_0.gguf", MODEL)

    assert run(["list", "--all", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["store"], row["name"]) for row in rows] == [
        ("decant", "own-Q8_0"), ("ollama", "cat:latest"),
    ]  # fmt: skip


def test_nothing_anywhere_is_told(home, capsys):
    assert run(["list", "--all"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "Ollama, LM Studio and the hub's cache have no models here" in err


def test_control_characters_of_a_name_do_not_reach_the_terminal(home, capsys):
    add_to_lmstudio(home.lmstudio, "org/Dog/D\x1b[31m.gguf")

    assert run(["list", "--all"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_rm_says_that_the_other_program_keeps_the_file(home, capsys):
    blob = home.ollama.add("cat")
    run(["import", "--from", "ollama", "cat"])

    assert run(["rm", "cat"]) == 0
    assert "freed 0 bytes; the rest is another program's, too" in capsys.readouterr().err
    assert blob.is_file()


def test_a_link_whose_file_is_gone_is_listed_and_removed(home, capsys):
    (home.store / "cat-Q8_0.gguf").symlink_to(home.path / "gone.gguf")

    assert run(["list"]) == 0
    assert f"is a link to `{home.path}/gone.gguf`, which is gone" in capsys.readouterr().err
    assert run(["inspect", "cat"]) == 3
    assert "decant rm cat-Q8_0" in capsys.readouterr().err
    assert run(["rm", "cat-Q8_0"]) == 0
    assert not list(home.store.iterdir())


@pytest.mark.lasting
def test_link_prints_the_name_to_type(home, capsys):
    assert home.ollama.blobs.is_dir()
    write_gguf(home.store / "cat-Q8_0.gguf", {**MODEL, "tokenizer.chat_template": TEMPLATE})

    assert run(["link", "cat", "--to", "ollama"]) == 0
    out, err = capsys.readouterr()
    assert out == "cat:Q8_0\n"
    assert "then: ollama run cat:Q8_0" in err


def test_what_is_linked_can_be_imported_again(home, capsys):
    assert home.ollama.blobs.is_dir()
    write_gguf(home.store / "cat-Q8_0.gguf", MODEL)
    run(["link", "cat", "--to", "ollama", "--as", "cat"])

    assert run(["import", "--from", "ollama", "cat"]) == 0
    assert "the store has it already: cat-Q8_0" in capsys.readouterr().err


def test_link_takes_no_repo_and_no_unknown_name(home, capsys):
    for name in ("org/cat", "nothing"):
        assert run(["link", name, "--to", "lmstudio"]) == 3
        assert "hint:" in capsys.readouterr().err


def test_copy_is_for_ollama_alone(home, capsys):
    write_gguf(home.store / "cat-Q8_0.gguf", MODEL)

    assert run(["link", "cat", "--to", "lmstudio", "--copy"]) == 2
    assert "--copy is for --to ollama" in capsys.readouterr().err
