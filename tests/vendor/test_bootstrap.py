"""The checkout's own set-up, run for real on a miniature checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parents[2] / "vendor" / "bootstrap.py"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "mini"
version = "1"
[project.optional-dependencies]
export = []
dev = ["iniconfig"]
[tool.hatch.build.targets.wheel]
packages = ["mini"]
"""
HASHES = {
    "2.0.0": "b6a85871a79d2e3b22d2d1b94ac2824226a63c6b741c88f7ae975f18b6778374",
    "2.1.0": "9deba5723312380e77435581c6bf4935c94cbfab9b1ed33ef8d238ea168eb760",
}
"""Version of iniconfig -> SHA-256 of its wheel."""

# it asks the package index, as setting up does
pytestmark = [pytest.mark.llamacpp, pytest.mark.slow]


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "a checkout"
    (folder / "mini").mkdir(parents=True)
    (folder / "mini" / "__init__.py").write_text("")
    (folder / "vendor").mkdir()
    shutil.copy(BOOTSTRAP, folder / "vendor")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    pin(folder, "2.0.0")
    return folder


def pin(checkout: Path, version: str, sha256: str = "0" * 64) -> None:
    sha256 = HASHES.get(version, sha256)
    (checkout / "constraints.txt").write_text(f"iniconfig=={version}\n")
    (checkout / "packages.lock").write_text(f"iniconfig=={version} --hash=sha256:{sha256}\n")


def bootstrap(checkout: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(checkout / "vendor" / "bootstrap.py")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def installed(checkout: Path) -> str:
    code = "import mini; from importlib.metadata import version; print(version('iniconfig'))"
    python = checkout / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


def test_set_up_happens_once_then_again_when_the_pins_change(checkout):
    assert bootstrap(checkout).returncode == 0
    assert installed(checkout) == "2.0.0\n"

    again = bootstrap(checkout)
    assert (again.returncode, again.stderr) == (0, "")

    pin(checkout, "2.1.0")
    assert "making .venv" in bootstrap(checkout).stderr
    assert installed(checkout) == "2.1.0\n"


def test_a_failed_set_up_says_why_and_does_not_count(checkout):
    pin(checkout, "0.0.999")

    failed = bootstrap(checkout)

    assert failed.returncode == 4
    assert "iniconfig==0.0.999" in failed.stderr
    assert "hint:" in failed.stderr
    assert not (checkout / ".venv" / "decant-setup").exists()

    pin(checkout, "2.0.0")
    assert bootstrap(checkout).returncode == 0


def test_a_file_with_another_hash_is_not_installed(checkout):
    """The version exists, and its file is not the one that the lock names."""
    pin(checkout, "1.1.1")

    failed = bootstrap(checkout)

    assert failed.returncode == 4
    assert "the index serves another file than the one in `packages.lock`" in failed.stderr
    assert not list(checkout.glob(".venv/lib/*/site-packages/iniconfig"))
