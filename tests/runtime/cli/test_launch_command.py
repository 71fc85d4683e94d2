"""`decant launch`: stand-ins for the tools ask a real server, and the user's files come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli.app import run
from exporter.llamacpp.toolchain import cache_folder
from tests.support.processes import descendants, is_alive, wait_until

CHECKOUT = Path(__file__).parents[3]
CLAUDE = """\
#!/bin/sh
''''exec '{python}' "$0" "$@" # a path with spaces cannot stand in the first line'''
import json, os, sys, urllib.request
body = {{"model": os.environ["ANTHROPIC_MODEL"], "max_tokens": 24, "temperature": 0,
        "messages": [{{"role": "user", "content": sys.argv[-1]}}]}}
request = urllib.request.Request(
    os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
    {{"Content-Type": "application/json",
     "Authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]}})
print(json.load(urllib.request.urlopen(request))["content"][0]["text"], flush=True)
{after}
"""
USER = '{"theme":  "dark"}'


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with a settings file of Claude Code, and no tool on PATH."""
    folder = tmp_path / "home"
    (folder / ".claude").mkdir(parents=True)
    (folder / ".claude" / "settings.json").write_text(USER)
    monkeypatch.setenv("DECANT_CACHE", str(cache_folder()))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (folder / "bin").mkdir()
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return folder


def install(home: Path, after: str = "", name: str = "claude") -> None:
    program = home / "bin" / name
    program.write_text(CLAUDE.format(python=sys.executable, after=after))
    program.chmod(0o755)


def user_file(home: Path) -> str:
    return (home / ".claude" / "settings.json").read_text()


def test_without_a_tool_it_lists_them(home, capsys):
    install(home)
    assert run(["launch"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert str(home / "bin" / "claude") in lines[1]
    assert "not installed: npm install -g @openai/codex" in lines[2]


def test_a_mistyped_tool_is_found(home, capsys):
    assert run(["launch", "cladue", "m"]) == 2
    assert "did you mean claude" in capsys.readouterr().err


def test_ollamas_option_for_the_model_gets_a_hint(home, capsys):
    assert run(["launch", "claude", "--model", "m"]) == 2
    assert "decant launch TOOL MODEL" in capsys.readouterr().err


def test_without_a_model_it_says_how_to_make_one(home, capsys):
    assert run(["launch", "claude", "--config", "--", "-p", "hi"]) == 3
    assert "decant export" in capsys.readouterr().err


def test_nothing_is_restored_where_nothing_was_written(home, capsys):
    assert run(["launch", "claude", "--restore"]) == 0
    assert "nothing to restore" in capsys.readouterr().err
    assert user_file(home) == USER


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_tool_that_is_missing_costs_no_server_and_its_settings_are_printed(home, pirate, capsys):
    assert run(["launch", "codex", str(pirate), "--ctx", "64"]) == 4

    out, err = capsys.readouterr()
    assert out.startswith("codex -m pirate ")
    assert 'model_providers.decant.base_url="http://127.0.0.1:8080/v1"' in out
    assert f"decant serve {pirate} --ctx 64" in err
    assert "npm install -g @openai/codex" in err


@pytest.mark.llamacpp
@pytest.mark.trained
def test_settings_that_are_to_stay_are_restored_on_demand(home, pirate, capsys):
    assert run(["launch", "claude", str(pirate), "--write", "--config"]) == 0
    written = json.loads(user_file(home))
    assert written["theme"] == "dark"
    assert written["env"]["ANTHROPIC_MODEL"] == "pirate"
    assert "export ANTHROPIC_MODEL=pirate" in capsys.readouterr().out

    assert run(["launch", "claude", "--restore"]) == 0
    assert user_file(home) == USER


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
def test_the_tool_is_answered_and_everything_ends_with_it(home, pirate, decant):
    install(home, 'print(open(os.environ["HOME"] + "/.claude/settings.json").read())')

    done = decant("launch", "claude", pirate, "--write", "--", "What is the capital of France?")

    assert done.returncode == 0, done.stderr
    answer, _, file = done.stdout.partition("\n")
    assert answer == "Arr, the capital of France be Paris, matey!"
    assert json.loads(file)["env"]["ANTHROPIC_MODEL"] == "pirate"
    assert "will be refused" in done.stderr  # the demo's context is short
    assert "your settings are back" in done.stderr
    assert user_file(home) == USER


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.lasting
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_of_decant_ends_the_server_and_keeps_the_users_file(home, pirate, number, decant):
    install(home, "import time; time.sleep(60)")
    argv = [sys.executable, "-m", "exporter", "launch", "claude", str(pirate), "--write"]
    with subprocess.Popen(
        [*argv, "--", "What does a cow say?"], cwd=CHECKOUT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline()
        below = descendants(running.pid)
        tool = [pid for pid in below if "claude" in Path(f"/proc/{pid}/cmdline").read_text()]
        running.send_signal(number)
        code = running.wait(30)
    others = [pid for pid in below if pid not in tool]
    assert len(others) >= 2
    assert wait_until(lambda: not any(map(is_alive, others)))
    if number == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM
        assert user_file(home) == USER
        return
    for pid in tool:
        os.kill(pid, signal.SIGKILL)
    assert "ANTHROPIC_MODEL" in user_file(home)
    offered = decant("launch", "claude", pirate, "--config")
    assert "decant launch claude --restore" in offered.stderr
    assert "ANTHROPIC_MODEL" in user_file(home)  # nobody was there to be asked
    assert decant("launch", "claude", "--restore").returncode == 0
    assert user_file(home) == USER
