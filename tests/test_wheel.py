"""What a user without a checkout has: the wheel, in an empty environment, somewhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.raw import write_tiny_gguf

CHECKOUT = Path(__file__).parents[1]

pytestmark = [pytest.mark.llamacpp, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(CHECKOUT),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    (path,) = folder.glob("decant_llm-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """`decant` from the wheel and its own dependencies alone."""
    folder = tmp_path_factory.mktemp("a place with spaces")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    pip = [str(folder / "env" / "bin" / "python"), "-m", "pip", "install", "-q"]
    constraints = str(CHECKOUT / "constraints.txt")
    subprocess.run([*pip, "-c", constraints, str(wheel)], check=True, capture_output=True)
    return folder / "env" / "bin" / "decant"


def decant(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(installed), *map(str, arguments)],
        cwd=installed.parent,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def test_the_wheel_carries_the_recipe_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    assert "exporter/_vendor/llama.cpp.toml" in names
    assert "exporter/_vendor/build.py" in names
    assert "runtime/gateway/page/index.html" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "vendor"))]


def test_setup_finds_or_builds_llamacpp_and_doctor_agrees(installed):
    done = decant(installed, "setup")
    assert done.returncode == 0, done.stderr
    assert "0c1e57098" in done.stdout

    checked = decant(installed, "doctor")
    assert checked.returncode == 0, checked.stdout
    assert "chat works, export does not" in checked.stdout


def test_chat_answers_without_torch(installed, tmp_path):
    model = write_tiny_gguf(tmp_path / "tiny.gguf")

    done = decant(installed, "chat", model, "-p", "hello", "-n", 4, "--temperature", 0, "--json")

    assert done.returncode == 0, done.stderr
    assert '"tokens": 4' in done.stdout


def test_export_says_what_to_install(installed, tmp_path):
    done = decant(installed, "export", tmp_path)

    assert done.returncode == 4
    assert "exporting needs torch, transformers, peft" in done.stderr
    assert "decant-llm[export]" in done.stderr
