"""Completion in the shell: what it offers, how fast, and nothing else on the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete

from exporter.cli.app import COMMANDS, root, run
from exporter.cli.completion_command import INSTALL, VARIABLE
from exporter.core.ggml_types import QUANTS

FAST_S = 0.3


def offered(*words: str, last: str = "") -> list[str]:
    """What the Tab key offers behind the words."""
    shell = BashComplete(root, {}, "decant", VARIABLE)
    return [item.value for item in shell.get_completions(list(words), last)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("DECANT_STORE", str(tmp_path))
    for name in ("my-lora-Q4_K_M", "my-lora-Q8_0", "other-F16"):
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    return tmp_path


def test_it_completes_commands_options_models_and_quantizations(store):
    assert set(COMMANDS) <= set(offered())
    assert offered(last="exp") == ["export"]
    assert "--temperature" in offered("chat", last="--temp")
    assert offered("rm", last="my") == ["my-lora-Q4_K_M", "my-lora-Q8_0"]
    assert "my-lora-Q8_0" in offered("chat", last="my-")
    assert set(offered("export", "x", "-q")) >= set(QUANTS)
    assert offered("export", "x", "-q", last="q4_k") == ["Q4_K_S", "Q4_K_M"]
    assert offered("export", "--to", last="sa") == ["safetensors"]


def test_it_completes_behind_another_name_of_a_command(store):
    assert "my-lora-Q8_0" in offered("run", last="my-")


@pytest.mark.parametrize("command", ["export", "chat", "serve", "eval", "verify"])
def test_it_loads_nothing_heavy_and_is_fast(store, command):
    program = (
        "import sys; from exporter.cli.app import run; run(); "
        "print(*sorted({'torch', 'transformers', 'numpy', 'rich', 'starlette'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    env = os.environ | {
        "_DECANT_COMPLETE": "bash_complete", "COMP_WORDS": f"decant {command} ", "COMP_CWORD": "2",
    }  # fmt: skip
    took = []
    for _ in range(3):
        began = os.times()
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        )
        ended = os.times()
        took.append(sum(ended[2:4]) - sum(began[2:4]))  # of processor time, the machine being busy
        assert not done.stderr.strip()

    assert min(took) < 2 * FAST_S  # torch alone takes more


@pytest.mark.parametrize("shell", INSTALL)
def test_the_script_is_one_of_its_shell_and_says_how_to_install_it(shell, capsys):
    assert run(["completion", shell]) == 0
    out, err = capsys.readouterr()

    assert not err
    assert out.startswith(f"# {INSTALL[shell]}\n")
    assert f"_DECANT_COMPLETE={shell}_complete" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


def test_bash_completes_with_the_script(store, tmp_path, capsys):
    assert run(["completion", "bash"]) == 0
    (tmp_path / "decant").write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -c 'from exporter.cli.app import main; main()'"
        ' "$@"\n'
    )
    (tmp_path / "decant").chmod(0o755)
    (tmp_path / "script").write_text(capsys.readouterr().out)
    asked = (
        f"source {tmp_path}/script; COMP_WORDS=(decant chat my); COMP_CWORD=2;"
        ' _decant_completion decant my chat; echo "${COMPREPLY[@]}"'
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], env=env, capture_output=True, text=True, check=True
    )

    assert done.stdout.split()[:2] == ["my-lora-Q4_K_M", "my-lora-Q8_0"]


def test_without_a_shell_it_is_the_users(capsys, monkeypatch):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run(["completion"]) == 0
    assert "fish" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert run(["completion"]) == 2
    assert "name the shell: bash, zsh, fish" in capsys.readouterr().err
