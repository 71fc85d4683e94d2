from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from exporter.cli.app import COMMANDS, root, run
from exporter.core.errors import DecantError

pytestmark = pytest.mark.lasting

HEAVY = ("numpy", "rich", "torch", "transformers", "peft", "huggingface_hub", "httpx2", "jinja2")


def modules_after(code: str) -> set[str]:
    """The modules a fresh interpreter has loaded when `code` is through."""
    code += "\nimport sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def cpu_seconds(code: str) -> float:
    """The least CPU time of some runs of `code` in a fresh interpreter."""
    times = []
    for _ in range(7):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times)


HELP = "from exporter.cli.app import run; run(['--help'])"


def test_help_loads_nothing_heavy_and_no_command():
    loaded = modules_after(HELP)

    assert loaded.isdisjoint(HEAVY)
    assert not [name for name in loaded if name.startswith(("runtime", "exporter.export"))]
    assert "exporter.cli.export_command" not in loaded


def test_help_costs_at_most_120_ms_over_python_and_click():
    assert cpu_seconds(HELP) - cpu_seconds("import click") <= 0.120


def test_help_lists_every_command_with_the_line_of_its_own_help(capsys):
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out

    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in printed
        assert line in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name, capsys):
    assert run([name, "--help"]) == 0
    assert f"Example: decant {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported_alone(name):
    module = COMMANDS[name][0].partition(":")[0]
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert run(["exprot"]) == 2
    assert "did you mean `decant export`?" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    from importlib import metadata

    assert run(["--version"]) == 0
    assert metadata.version("decant-llm") in capsys.readouterr().out


def subclasses(kind: type[DecantError]) -> set[type[DecantError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_family_of_errors_has_the_exit_code_the_help_names(capsys):
    run(["--help"])
    codes = capsys.readouterr().out.partition("Exit codes:")[2]

    for kind in subclasses(DecantError):
        assert f"{kind.exit_code} " in codes, kind


def test_an_error_is_message_and_hint_on_stderr_without_colour_off_a_terminal(decant):
    done = decant("inspect", "no-such-model")

    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: there is no model 'no-such-model'")
    assert "\n\nhint: " in done.stderr
    assert "\x1b" not in done.stderr


def test_a_traceback_only_when_asked_for(decant):
    assert "Traceback" not in decant("inspect", "no-such-model").stderr
    assert "Traceback" in decant("inspect", "no-such-model", DECANT_DEBUG="1").stderr


@pytest.mark.parametrize(
    "command",
    ["serve", "tokens", "inspect", "rm", pytest.param("export", marks=pytest.mark.trained)],
)
def test_a_name_of_any_length_is_an_error_of_the_input(command, decant):
    done = decant(command, "x" * 100_000)

    assert done.returncode == 3
    assert "is too long for the name of a file: 100000 characters" in done.stderr
    assert len(done.stderr) < 300


def test_a_bug_is_called_a_bug(capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "list", ("no.such.module:x", ""))

    assert run(["list"]) == 1
    assert "this is a bug in decant" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    argv = [sys.executable, "-m", "exporter", "export", "--help"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    printed = process.stderr.read()
    process.stderr.close()

    assert process.wait(20) == 0
    assert printed == b""


def test_ctrl_c_ends_with_130(tmp_path):
    """A command that waits: reading a prompt that never comes."""
    from tests.support.raw import write_tiny_gguf

    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    argv = [sys.executable, "-m", "exporter", "chat", str(model)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(1.5)
        process.send_signal(2)
        _, printed = process.communicate(timeout=10)

    assert process.returncode == 130
    assert printed.split() == [b"interrupted"]


def test_completion_knows_the_commands_without_importing_them():
    code = (
        "from click.shell_completion import ShellComplete; from exporter.cli.app import root;"
        "found = ShellComplete(root, {}, 'decant', '_X').get_completions([], 'exp');"
        "assert [c.value for c in found] == ['export'], found"
    )

    assert "exporter.cli.export_command" not in modules_after(code)


def test_the_root_is_lazy_about_names():
    assert list(root.list_commands(None)) == list(COMMANDS)  # type: ignore[arg-type]


def test_a_name_in_an_error_cannot_command_the_terminal(capsys):
    run(["inspect", "a\x1b]0;owned\x07.gguf"])

    assert "\x1b" not in capsys.readouterr().err
