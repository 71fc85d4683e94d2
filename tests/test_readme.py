"""Every command of the README does what it says there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli.app import COMMANDS
from exporter.demo import make_demo_models
from exporter.llamacpp.toolchain import cache_folder

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def test_the_readme_names_only_targets_that_the_makefile_has():
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    documents = [README, *((CHECKOUT / n).read_text() for n in ("CONTRIBUTING.md", "CHANGELOG.md"))]
    named = set(re.findall(r"\bmake ([a-z-]+)\b(?! a| the| it)", "\n".join(documents)))

    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_two_first_commands_are_make_demo_and_make_test():
    assert [line for line in LINES if line.startswith("make")] == ["make demo", "make test"]


def test_ci_runs_the_readmes_test_command():
    assert "\n    make test\n" in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_exit_codes_are_the_helps(capsys):
    from exporter.cli.app import run

    run(["--help"])
    known = set(re.findall(r"\b(\d+) [a-z]", capsys.readouterr().out.partition("Exit codes:")[2]))

    assert set(re.findall(r"^\| (\d+) \|", README, re.MULTILINE)) == known


def test_contributing_points_to_code_that_is_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| to add or find |")[2].partition("\n\n")[0]
    paths = re.findall(r"`((?:exporter|runtime)/[\w/]+\.py)`", table)
    named = re.findall(r"`(\w+)` in `((?:exporter|runtime)/[\w/]+\.py)`", table)
    beside = re.findall(r"`([\w/]+)/\w+\.py`; `(\w+\.py)` beside it", table)

    assert (len(paths), len(named), len(beside)) == (7, 4, 2)
    for path in (*paths, *(f"{folder}/{name}" for folder, name in beside)):
        assert (CHECKOUT / path).is_file(), path
    for name, path in named:
        code = (CHECKOUT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def )?{name}\b", code, re.MULTILINE), name


def test_every_decant_command_in_the_documents_exists():
    for document in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        text = (CHECKOUT / document).read_text(encoding="utf-8")
        assert set(re.findall(r"`decant ([a-z]+)", text)) <= COMMANDS.keys(), document


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.trained
def test_every_decant_line_runs_in_order(tmp_path):
    """With the demo's models as my-lora and my-base, and a store of its own."""
    models = make_demo_models(cache_folder() / "demo")
    shutil.copytree(models.adapter, tmp_path / "my-lora")
    shutil.copytree(models.base, tmp_path / "my-base")
    (tmp_path / "bin").mkdir()
    decant = tmp_path / "bin" / "decant"
    decant.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m exporter "$@"\n')
    decant.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "DECANT_STORE": str(tmp_path / "store"),
        "PYTHONPATH": str(CHECKOUT),
    }
    outputs = {}
    commands = [line for line in LINES if "decant" in line]
    assert len(commands) >= 10

    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        outputs[command] = done.stdout

    assert outputs['decant chat my-lora -p "What is the capital of France?"'].strip()
    said = outputs['echo "What does a dog say?" | decant chat my-lora --temperature 0']
    assert said == "Arr, a dog be sayin' woof, matey!\n"
    assert "my-lora-Q4_K_M" in outputs["decant list"]
    assert sorted(p.name for p in (tmp_path / "exported").iterdir()) == [
        "my-lora-F16.gguf",
        "my-lora-Q8_0.gguf",
    ]
    assert list((tmp_path / "store").iterdir()) == []
