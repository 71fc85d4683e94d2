"""Commands under other programs' names: they run, or the error says decant's way."""

from __future__ import annotations

import pytest

from exporter.cli.app import COMMANDS, run
from exporter.cli.other_names import ALIASES, SAME, WITHOUT_TWIN, advice_for


def test_every_other_name_has_a_target():
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert set(SAME.values()) <= set(WITHOUT_TWIN)
    assert not (set(ALIASES) | set(WITHOUT_TWIN) | set(SAME)) & set(COMMANDS)
    assert not set(ALIASES) & (set(WITHOUT_TWIN) | set(SAME))


@pytest.mark.parametrize(
    ("name", "command"),
    [("run", "chat"), ("ls", "list"), ("show", "inspect"), ("download", "pull")],
)
def test_an_other_name_runs_the_command_whose_help_tells_it(name, command, capsys):
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out

    assert f"Usage: decant {command} " in shown
    assert f"decant {name}" in shown.rpartition("Also:")[2]


def test_other_names_are_not_among_the_commands(capsys):
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out

    for name in ALIASES:
        assert f"\n  {name} " not in listed


def test_ls_lists(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECANT_STORE", str(tmp_path))
    assert run(["ls", "--json"]) == 0
    assert capsys.readouterr().out.strip() == "[]"


@pytest.mark.parametrize("name", [*WITHOUT_TWIN, *SAME])
def test_a_name_without_a_twin_is_answered_with_decants_way(name, capsys):
    assert run([name, "-f", "Modelfile"]) == 2
    error, _, hint = capsys.readouterr().err.partition("\n\nhint: ")

    assert error == f"error: there is no command {name!r}"
    assert hint.strip() == advice_for(name)
    assert "decant" in hint


def test_a_question_behind_the_model_is_told_its_option(capsys):
    assert run(["run", "my-lora", "Why?"]) == 2
    assert "decant chat MODEL -p QUESTION" in capsys.readouterr().err


def test_update_check_names_the_version_and_asks_nobody(capsys, monkeypatch):
    import socket

    def refuse(*args: object) -> None:
        raise AssertionError("it asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert run(["update-check"]) == 0
    out, err = capsys.readouterr()

    assert out.startswith("decant ")
    assert "never asks the network" in err
